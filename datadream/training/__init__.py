"""The optimisation loop, its schedules and checkpoints, and batch sizes that fit into memory.

Depends on `store` and the package's base modules.
"""
