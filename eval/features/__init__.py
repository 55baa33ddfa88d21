"""From models to features."""
