"""What a run learns where and when."""
