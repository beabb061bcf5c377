"""Sampling, collation and loading of batches."""
