"""The run: state, steps, loop, checkpoints, evaluation."""
