"""Files, storage, hub: nothing of the project."""
