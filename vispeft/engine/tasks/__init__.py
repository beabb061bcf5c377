"""Tasks of a configuration: reading, inference, metrics and files of each, registered once in `registry.py`."""
