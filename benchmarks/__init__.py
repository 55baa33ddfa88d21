"""One script per claim of the README: each prints a table and writes its rows as JSON."""
