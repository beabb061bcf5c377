"""Copy-paste augmentation: instances of one training image pasted on another."""

from __future__ import annotations

import numpy as np
import torch

from vispeft.data.transforms.augmentation import Example
from vispeft.data.transforms.geometry import boxes_of


def paste(example: Example, source: Example, rng: np.random.Generator, *, min_pixels: int) -> Example:
    """Return `example` with a random subset of the instances of `source` on it, at their places.

    Simple Copy-Paste (Ghiasi et al. 2021, section 3; https://arxiv.org/abs/2012.07177), without its blurred edges,
    which the paper finds to make no difference. Instances below keep their visible part; those of fewer than
    `min_pixels` pixels are dropped. What lies outside of `example` is cut off.

    example, source: of the same channels; sizes may differ, and of images of 8 bits and others, the result is float32
    """
    chosen = torch.from_numpy(rng.random(len(source.masks)) < 0.5)
    height, width = (min(a, b) for a, b in zip(example.image.shape[1:], source.image.shape[1:], strict=True))
    pasted = torch.zeros((int(chosen.sum()), *example.image.shape[1:]), dtype=torch.bool)
    pasted[:, :height, :width] = source.masks[chosen, :height, :width]
    covered = pasted.any(0)
    dtype = torch.promote_types(example.image.dtype, source.image.dtype)
    image = example.image.to(dtype, copy=True)
    where = covered[:height, :width]
    image[:, :height, :width][:, where] = source.image[:, :height, :width][:, where].to(dtype)
    masks = torch.cat((example.masks & ~covered, pasted))
    labels = torch.cat((example.labels, source.labels[chosen]))
    kept = masks.flatten(1).sum(1) >= min_pixels
    boxes = boxes_of(masks[kept].numpy().view(np.uint8)).astype(np.float32)
    return Example(image, labels[kept], torch.from_numpy(boxes), masks[kept])
