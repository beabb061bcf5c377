"""COCO metrics: matching, accumulation, summary numbers."""
