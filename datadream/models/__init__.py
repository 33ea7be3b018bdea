"""Networks: generators, classifiers, their LoRA adapters, and where they come from.

Stands on `data`, `training`, `store` and the ground floor.
"""
