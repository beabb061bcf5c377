"""Input of a model by the configuration of its image processor in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# sides are multiples of this where the image processor names no divisor: the stride of the smallest encoder map
_DIVISOR = 32


@dataclass(frozen=True)
class InputRule:
    """Input of a model as its image processor makes it.

    image_size: longer side of the network input in pixels; None where the processor names no size
    size_divisor: number of which the sides of the padded input are multiples
    pixel_mean, pixel_std: of each channel, in 0..255
    """

    image_size: int | None
    size_divisor: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Mapping[str, Any]) -> InputRule:
        """Return the rule of an image processor's configuration."""
        scale = 1 / float(processor.get("rescale_factor") or 1 / 255) if processor.get("do_rescale", True) else 1.0
        mean, std = processor.get("image_mean"), processor.get("image_std")
        if not processor.get("do_normalize", True) or mean is None or std is None:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        divisor = processor.get("size_divisor") or processor.get("size_divisibility") or _DIVISOR
        return cls(
            _longer_side(processor),
            int(divisor),
            tuple(round(scale * float(value), 4) for value in mean),
            tuple(round(scale * float(value), 4) for value in std),
        )


def _longer_side(processor: Mapping[str, Any]) -> int | None:
    size = processor.get("size")
    if isinstance(size, int):
        return int(processor.get("max_size") or size)
    sides = [int(side) for side in size.values() if side] if isinstance(size, Mapping) else []
    return max(sides, default=None)
