"""Artifacts by content key: a store in a folder, one at an address, and garbage collection.

Depends only on the base modules errors, paths, progress and signals.
"""
