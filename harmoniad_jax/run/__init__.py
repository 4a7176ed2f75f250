"""What a run is made of: its settings checked, its images, its parts, its identity."""
