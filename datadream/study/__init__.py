"""The study: its cells, the named runs of notebooks/study.yaml, ablations, the plan, and what a
notebook needs.

Stands on `engines`, `results` and what is below them.
"""
