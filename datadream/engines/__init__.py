"""Where cells run: in this process, on a Ray cluster, or in several processes on one adapter.

The modules are `here`, `on_ray` and `on_accelerate`; `rates` estimates how long a stage takes.
Depends on `results` and the layers below it.
"""
