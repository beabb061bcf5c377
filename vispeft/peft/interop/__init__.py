"""Adapter directories of other libraries."""
