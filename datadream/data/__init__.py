"""Real images: the table of datasets, their readers, folders, transforms, augmentation and batches.

Stands on `training`, `store` and the ground floor.
"""
