"""The frozen image encoders: a file for each family, and what they share.

The feature cache hashes the source text of all files here: see `features/encode.py`.
"""
