"""Files on disk: atomic writes, JSON, safetensors, locks, the layout of a run directory; and the nearest names."""
