"""EoMT, the Encoder-only Mask Transformer (Kerssies et al., CVPR 2025): model, criterion, postprocessing, weights."""
