"""All of Ray for one run."""
