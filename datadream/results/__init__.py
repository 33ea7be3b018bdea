"""Results: records, tables, figures, and measures of image sets.

Imports `pipeline` and what is below it.
"""
