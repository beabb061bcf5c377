"""The content of COCO files: the rules that reading for training and reading for scoring share."""
