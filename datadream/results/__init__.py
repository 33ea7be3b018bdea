"""What comes out: records, tables, figures, and measures of sets of images.

Stands on `pipeline` and what is below it.
"""
