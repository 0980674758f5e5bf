"""Measurements, each a module with one question: `python -m benchmarks.speed`, `python -m benchmarks.quality`, ...

None of them is a test: figures depend on the machine and on what else it does. Ratios are taken in one run, the two
sides in turn, and the median of the rounds is printed with the smallest and the largest.
"""
