"""Recipe of `pretrain_base.py`: data, image sizes and learning rates."""

from __future__ import annotations

SEED = 20261129
WARMUP = 300
DECAY = 0.4
"""Share of the steps, at the end, in which the learning rate falls to nearly zero."""
LR = 4e-4
CNN_LR_SCALE = 0.1
"""Rate of the ImageNet network, as a part of the others'."""
FROZEN = ("conv_stem", "blocks.0", "blocks.1")
"""Parts of the ImageNet network, up to stride 4, that stay as they are."""
FROZEN_KIND = "conv_dw"
"""Its depth-wise convolutions stay as they are too: on CPUs their weights' gradient takes a quarter of a step."""
NUM_QUERIES = 100

BACKBONE = "efficientnet_lite0_vit_tiny"
PHOTOGRAPHS = {"coco-mini": 0.4, "animals": 0.15, "clothing": 0.2, "buildings-aerial": 0.25}
"""Sets of photographs, of which the training images alone are used, with their shares of the photographs."""
FROM_ABOVE = ("buildings-aerial",)
"""Sets whose images are flipped and turned in all directions."""
CUT_FROM = ("coco-mini", "animals")
"""Sets whose objects are pasted; clothes and roofs cut out are none."""
PHOTOGRAPH_SHARE, PASTED_SHARE = 0.5, 0.25
"""Shares of the batches with photographs and with copy-paste scenes; the others are synthetic scenes."""
OBJECT_SHARE = 0.3
"""Share of the batches of photographs in which every object has the class "object" alone."""

SIZES = {128: (10, 0.1), 192: (6, 0.35), 256: (4, 0.4), 320: (2, 0.15)}
"""Side of the images in pixels: images per process and step, and share of the steps."""
MAX_OBJECTS = 100
MIN_SIDE = 7.0
"""Synthetic scenes with a smaller median square root of object area, in pixels, are drawn again."""


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step of a training of `steps`: warm-up, constant, linear to nearly zero."""
    left = (steps - step) / (DECAY * steps)
    return LR * min(1.0, (step + 1) / WARMUP, max(left, 0.005))
