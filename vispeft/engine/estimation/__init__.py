"""Cost of a configuration before training, and configurations that fit a budget. No weights are fetched."""
