"""Test images into metrics and a report."""
