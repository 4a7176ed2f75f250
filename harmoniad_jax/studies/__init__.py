"""What trained variants and runs are compared by: ablations and corrupted images."""
