"""The one optimisation loop, its schedules and checkpoints, and batches that fit the memory.

Stands on `store` and the ground floor.
"""
