"""Error analysis of a set of results."""
