"""What a COCO file may hold: the rules that reading for training and reading for scoring share."""
