"""What every method shares, in the order of the paper: adapt (3.2), generate (3.3), train (3.4),
evaluate (4).

`stages` holds the keys and the order, `draws` what an image is drawn with, `record` the result
of a cell, `costs` what a stage takes. Stands on `models`, `data`, `training`, `store` and the
ground floor.
"""
