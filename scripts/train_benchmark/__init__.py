"""The parts of `scripts/benchmark_train.py`."""
