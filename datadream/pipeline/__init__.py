"""The stages that all methods share: adapt (paper, section 3.2), generate (3.3), train (3.4) and
evaluate (4).

`stages` holds their table and the cell. Stands on `models`, `data`, `training`, `store` and the
ground floor.
"""
