"""The one optimisation loop, its schedules and checkpoints, and batches that fit the memory."""
