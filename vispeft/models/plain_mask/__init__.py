"""Parts that the families share whose queries run beside the tokens of a plain ViT: EoMT and PMT."""
