"""Where cells run: in this process, on a Ray cluster, or in several processes on one adapter.

The modules are `here`, `on_ray` and `on_accelerate`; `rates` estimates what a stage takes. Stands
on `results` and what is below it.
"""
