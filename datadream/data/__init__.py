"""Real images: the table of datasets, their readers, folders, transforms, augmentation and batches.

Depends on `training`, `store` and the package's base modules.
"""
