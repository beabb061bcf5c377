"""Pictures of instances: overlays, outlines."""
