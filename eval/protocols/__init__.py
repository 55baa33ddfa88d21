"""What is done with a model and a task: one file a protocol."""
