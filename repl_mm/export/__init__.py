"""What a deployed network is exported to."""
