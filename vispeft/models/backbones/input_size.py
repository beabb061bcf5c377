"""One forward pass through a backbone at the network's input size, before any data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.backbones.timm_models import first_line, padded_side
from vispeft.models.modes import evaluating

# about two seconds on one core; of larger models shapes alone are computed
_MOST_FLOPS = 1e11
_MOST_CANDIDATES = 2


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raise ConfigError if a backbone does not give its maps for images of `image_size` pixels."""
    fault = _fault(backbone, image_size)
    if fault is None:
        return
    side = padded_side(image_size, backbone.size_divisor)
    what = f"`backbone` {backbone.name} cannot take `image_size` {image_size}"
    padded = f", padded to {side}" if side != image_size else ""
    fitting = [size for size in _candidates(backbone.name, image_size) if _takes(backbone.name, size)]
    if fitting:
        raise ConfigError(
            f"{what}{padded} ({fault}). It takes {' and '.join(map(str, fitting))}: set `image_size={fitting[0]}`, "
            "or choose another backbone."
        )
    raise ConfigError(
        f"`backbone` {backbone.name} is not usable as a multi-scale backbone at `image_size` "
        f"{image_size}{padded} ({fault}). Choose another backbone, or check `backbone_options`."
    )


def _fault(backbone: Backbone, image_size: int) -> str | None:
    """Return the fault of the maps for images of a size, or None."""
    side = padded_side(image_size, backbone.size_divisor)
    with evaluating(backbone):
        if _flops(backbone, side) > _MOST_FLOPS:
            with _shapes_only():
                fault = _tried(backbone, side)
            if fault is None:
                return None
        # a real pass if it is cheap, or if shapes alone ended in an error
        return _tried(backbone, side)


@torch.no_grad()
def _tried(backbone: Backbone, side: int) -> str | None:
    try:
        maps = backbone(torch.zeros(1, len(backbone.pixel_mean), side, side))
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if "DefaultCPUAllocator" in str(error):
            raise
        return first_line(error)
    return _wrong_map(maps, backbone.channels, [side / stride for stride in backbone.strides])


def _wrong_map(maps: Sequence[Tensor], channels: Sequence[int], sides: Sequence[float]) -> str | None:
    """Describe the first map that is not [1, C, H, W] with about the side that its stride gives; None if all are."""
    for x, width, side in zip(maps, channels, sides, strict=True):
        is_near = x.ndim == 4 and all(side / 1.5 - 1 <= length <= side * 1.5 + 1 for length in x.shape[2:])
        if not is_near or x.shape[1] != width:
            expected = f"[1, {width}, {side:.0f}, {side:.0f}]"
            return f"it should give a map of {expected}, but gives {list(x.shape)}"
    return None


def _candidates(name: str, image_size: int) -> list[int]:
    """Return the size that timm declares for a model and its multiples around `image_size`, nearest first."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.input_size:
        return []
    declared = int(config.input_size[-1])
    below = max(1, image_size // declared) * declared
    sizes = {declared, below, below + declared} - {image_size}
    return sorted(sizes, key=lambda size: abs(size - image_size))[:_MOST_CANDIDATES]


def _takes(name: str, size: int) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            return _fault(Backbone(name, image_size=size), size) is None
    except ConfigError:
        return False


def _flops(backbone: nn.Module, side: int) -> float:
    """Return the approximate operations of a forward pass, as of a plain ViT with patches of 16 pixels."""
    return 2.0 * sum(parameter.numel() for parameter in backbone.parameters()) * (side / 16) ** 2


@contextmanager
def _shapes_only() -> Iterator[None]:
    """Context in which tensors have shapes but no values, and failures are not logged."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.disabled = was_disabled
