"""Data sets, and the checks of what is in them."""
