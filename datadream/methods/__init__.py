"""The methods compared: one file per method, or per family of settings of one.

`base` has the protocol `Method` and its parts `Adapter` and `Draw`, `checked` asks a method and
checks what it says, `registry` has the table of all methods, and `recipes` makes the recipe of a
method in a profile. A package of one's own adds a method by the entry point "datadream.methods".
Stands on `models`, `data`, `training`, `store` and the ground floor.
"""
