"""The parts of `scripts/rehearse.py`."""
