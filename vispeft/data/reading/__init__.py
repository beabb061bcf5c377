"""Reading of COCO data sets and their images."""
