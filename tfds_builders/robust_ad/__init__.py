"""RobustAD."""
