"""Ways to evaluate a model on a task: one file a protocol."""
