"""The parts of `benchmarks/rehearse.py`."""
