"""PMT, the Plain Mask Transformer over a frozen ViT (Cavagnero et al., 2026): model, decoder, annealing, weights."""
