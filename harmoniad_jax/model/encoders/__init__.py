"""The frozen image encoders: a file for each family, and what they share."""
