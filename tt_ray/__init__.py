"""Train any timm image classifier with a language teacher, on any Ray cluster."""

__version__ = "0.1.0"
