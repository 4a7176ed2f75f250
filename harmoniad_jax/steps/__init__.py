"""The pure functions of a run, and the state that they change."""
