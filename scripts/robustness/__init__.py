"""The parts of `scripts/benchmark_robustness.py`."""
