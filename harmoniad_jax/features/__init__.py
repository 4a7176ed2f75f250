"""Images into encoder features: computed, stored once, found again."""
