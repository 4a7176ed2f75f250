"""Config files; `common.py` holds what they share."""
