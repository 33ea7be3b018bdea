"""Where cells run: on a Ray cluster, or several processes on one adapter.

Stands on `pipeline` and what is below it; `study.run` runs cells on this machine.
"""
