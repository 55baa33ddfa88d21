"""Splits of images: one file for each source."""
