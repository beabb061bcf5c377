"""Frozen weights in 8 and 4 bits: our own codes, and those of torchao and bitsandbytes."""
