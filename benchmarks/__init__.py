"""How fast each stage is, against the released code's way of doing it, on the same work in the
same run: `python -m benchmarks`.
"""
