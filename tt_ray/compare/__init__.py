"""Arms at equal epochs and at equal time."""
