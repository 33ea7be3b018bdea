"""What is compared: one file a method, or a family of settings of one.

`base` has the protocol `Method` and its parts `Adapter` and `Draw`, `registry` the table of all
methods, and `recipes` makes the recipe of a method in a profile. A package of one's own adds a
method by the entry point "datadream.methods". Stands on `models`, `data`, `training`, `store` and
the ground floor.
"""
