"""Augmentation and resizing of images with their annotations."""
