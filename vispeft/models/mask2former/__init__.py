"""Mask2Former (Cheng et al., CVPR 2022): model, decoder, criterion, weights, directories of transformers."""
