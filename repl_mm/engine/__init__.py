"""What stands around a run."""
