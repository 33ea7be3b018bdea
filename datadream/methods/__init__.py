"""The methods compared: one file per method, or per family of variants of one.

`base` has the interface `Method` and its parts `Adapter` and `Draw`, `checked` calls a method and
validates its answers, `registry` has the table of all methods, and `recipes` makes the recipe of a
method in a profile. Other packages add methods by the entry point "datadream.methods". Depends on
`models`, `data`, `training`, `store` and the package's base modules.
"""
