"""One script per claim of docs/speed.md and docs/results.md: each prints a table and writes its rows as JSON."""
