"""The stages that all methods share: adapt (paper, section 3.2), generate (3.3), train (3.4) and
evaluate (4).

`stages` has the one table of stages, and `Cell`, which holds a recipe's dataset, support set and
keys. Stands on `methods`, `models`, `data`, `training`, `store` and the ground floor.
"""
