"""The study: cells, named runs of notebooks/study.yaml, ablations, plan, and what notebooks need.

Imports `engines`, `results` and what is below them.
"""
