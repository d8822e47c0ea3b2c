"""The networks, one paper per file."""
