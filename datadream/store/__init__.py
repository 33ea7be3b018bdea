"""Artifacts by content key: a folder store, an address store on top of it, and garbage collection.

Stands on the ground floor: errors, paths, progress and signals.
"""
