"""Data sets to transfer to."""
