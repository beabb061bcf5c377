"""Encoders of other libraries as multi-scale feature maps."""
