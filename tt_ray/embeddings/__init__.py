"""The embedding store."""
