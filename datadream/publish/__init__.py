"""Publishing: the committed pages of the study, and exported datasets.

Imports `study` and what is below it.
"""
