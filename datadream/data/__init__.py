"""Real images: the table of datasets, their readers, folders, transforms, augmentation and batches.

Imports only `training`, `store` and the ground-floor modules.
"""
