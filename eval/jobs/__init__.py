"""Work of an evaluation on Ray, and what came out."""
