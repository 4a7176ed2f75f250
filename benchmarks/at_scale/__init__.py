"""The parts of `benchmarks/time_scale.py`."""
