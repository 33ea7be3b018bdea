"""The methods compared: one file per method, or per family of settings of one.

`base` has the protocol `Method` and its parts `Adapter` and `Draw`, `registry` the table of all
methods, and `recipes` makes the recipe of a method in a profile. An installed package adds methods
by the entry point "datadream.methods". Stands on `models`, `data`, `training`, `store` and
the ground floor.
"""
