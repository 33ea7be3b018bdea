"""What comes out: records, tables, figures, and measures of sets of images."""
