"""Benchmarks of each stage against the released code's implementation: `python -m benchmarks`.

Both do the same work, in the same run.
"""
