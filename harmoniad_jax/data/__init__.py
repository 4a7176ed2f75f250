"""From files to batches of pixels. Knows no model."""
