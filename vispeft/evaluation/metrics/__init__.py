"""COCO metrics: matching, accumulation, the twelve metrics; panoptic quality and mean IoU."""
