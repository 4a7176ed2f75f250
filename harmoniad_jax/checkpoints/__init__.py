"""Checkpoints on disk: written, proven, passed over when damaged, read."""
