"""Captions and frozen text encoders."""
