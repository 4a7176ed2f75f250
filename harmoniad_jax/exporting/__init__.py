"""What leaves the training machine: a run as one file that other runtimes read."""
