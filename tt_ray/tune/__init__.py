"""Search over configurations on Ray Tune."""
