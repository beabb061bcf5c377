"""Files on disk: JSON, locks."""
