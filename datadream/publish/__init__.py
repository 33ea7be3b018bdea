"""What leaves the project: the committed pages of the study, and exported datasets.

Stands on `study` and what is below it.
"""
