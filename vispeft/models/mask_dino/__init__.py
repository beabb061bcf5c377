"""Mask DINO (Li et al., CVPR 2023): model, decoders, criterion, split point."""
