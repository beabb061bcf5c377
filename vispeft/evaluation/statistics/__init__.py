"""Confidence intervals and comparisons of results."""
