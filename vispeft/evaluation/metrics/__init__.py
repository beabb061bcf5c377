"""COCO metrics: matching, accumulation, the twelve metrics."""
