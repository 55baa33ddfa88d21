"""One run; knows no Ray."""
