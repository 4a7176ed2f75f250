"""The parts of `benchmarks/time_training.py`."""
