"""A trained run at work: opened, asked for maps and scores, written to files."""
