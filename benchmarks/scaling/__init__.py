"""The parts of `benchmarks/analyse_scaling.py`."""
