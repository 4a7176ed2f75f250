"""Encoder, frequency split, branches, scoring. Knows no files and no config."""
