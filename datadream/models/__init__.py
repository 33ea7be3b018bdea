"""Networks: generators, classifiers, their LoRA adapters, and where they come from.

Depends on `data`, `training`, `store` and the package's base modules.
"""
