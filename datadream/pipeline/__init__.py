"""The stages that all methods share: adapt (paper, section 3.2), generate (3.3), train (3.4) and
evaluate (4).

`stages` has the table of stages, and `Cell`, which holds a recipe's dataset, support set and keys.
Depends on `methods`, `models`, `data`, `training`, `store` and the package's base modules.
"""
