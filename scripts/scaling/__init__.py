"""The parts of `scripts/analyse_scaling.py`."""
