"""Errors in one line, the life of a command, progress."""
