"""Trial of the deformable attention of transformers' models: equal to the formula of `vispeft_kernels`, or left alone.

Two forms are known. In Deformable DETR and its relatives, a module without parameters samples a feature pyramid. In
Mask2Former and OneFormer a function does, inside the module that owns the four projections. Other versions of the
library may compute something else under the same names, so that names alone do not do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vispeft_kernels.deformable import deformable_attention

Shapes = Sequence[tuple[int, int]]

PROJECTIONS = ("value_proj", "sampling_offsets", "attention_weights", "output_proj")
SIZES = ("n_heads", "n_levels", "n_points")
_SAMPLER = "MultiScaleDeformableAttention"
_ATTENTION = "PixelDecoderEncoderMultiscaleDeformableAttention"
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)


def is_sampler(module: nn.Module) -> bool:
    """Return True for a module that samples value, locations and weights by the formula."""
    if not _is_of_transformers(module) or type(module).__name__ != _SAMPLER:
        return False
    shapes, heads, points = [(2, 3), (1, 2)], 2, 2
    value = _numbers(2, _area(shapes), heads, 4)
    locations = _numbers(2, 3, heads, len(shapes), points, 2).abs()
    weights = _numbers(2, 3, heads, len(shapes), points)
    try:
        with torch.no_grad():
            given = module.forward(value, torch.tensor(shapes), shapes, torch.tensor([0, 6]), locations, weights, 64)
            return _is_close(given, deformable_attention(value, shapes, locations, weights))
    except _FAILURES:
        return False


def is_attention(module: nn.Module) -> bool:
    """Return True for a module with four projections that samples between them by the formula."""
    if not _is_of_transformers(module) or not type(module).__name__.endswith(_ATTENTION):
        return False
    children = dict(module.named_children())
    return children.keys() >= set(PROJECTIONS) and all(_equals_formula(module, size) for size in (2, 4))


def resolve(
    module: object, arguments: Mapping[str, Any], value: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, locations and weights of the formula from the outputs of an attention's projections.

    arguments: those of the attention's call
    """
    heads, levels, points = (int(getattr(module, name)) for name in SIZES)
    shapes, mask, reference = (
        arguments[name] for name in ("spatial_shapes_list", "attention_mask", "reference_points")
    )
    if mask is not None:
        value = value.masked_fill(mask[..., None], 0.0)
    value = value.view(*value.shape[:2], heads, -1)
    offsets = offsets.view(*offsets.shape[:2], heads, levels, points, 2)
    weights = logits.view(*logits.shape[:2], heads, levels * points).softmax(-1)
    reference = reference[:, :, None, :, None, :]
    if reference.shape[-1] == 2:
        sizes = torch.tensor([(width, height) for height, width in shapes], device=offsets.device)
        locations = reference + offsets / sizes[None, None, None, :, None, :]
    else:
        locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
    return value, locations, weights.view(*weights.shape[:3], levels, points)


def _equals_formula(module: nn.Module, size: int) -> bool:
    """Run an attention's own `forward` on given outputs of its projections. size: of a reference point, 2 or 4"""
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    try:
        heads, levels, points = (int(plain[name]) for name in SIZES)
        shapes = [(2, 3 + level) for level in range(levels)]
        samples = heads * levels * points
        value, offsets = _numbers(2, _area(shapes), heads * 4), _numbers(2, 5, samples * 2)
        logits, reference = _numbers(2, 5, samples), _numbers(2, 5, levels, size).abs()
        mask = torch.zeros(2, _area(shapes), dtype=torch.bool)
        mask[0, 0] = True
        projections = dict(zip(PROJECTIONS, (_give(value), _give(offsets), _give(logits), _pass), strict=True))
        stub = SimpleNamespace(**{**plain, "d_model": heads * 4, **projections})
        arguments = {
            "hidden_states": offsets,
            "attention_mask": mask,
            "encoder_hidden_states": value,
            "reference_points": reference,
            "spatial_shapes": torch.tensor(shapes),
            "spatial_shapes_list": shapes,
        }
        known = inspect.signature(type(module).forward).parameters
        with torch.no_grad():
            output, given = type(module).forward(stub, **{k: v for k, v in arguments.items() if k in known})
            *inputs, weights = resolve(stub, arguments, value, offsets, logits)
            return torch.equal(given, weights) and _is_close(
                output, deformable_attention(inputs[0], shapes, inputs[1], weights)
            )
    except (*_FAILURES, KeyError):
        return False


def _is_of_transformers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.models.") and "forward" not in vars(module)


def _is_close(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and torch.allclose(given, wanted, rtol=1e-3, atol=1e-4)


def _area(shapes: Shapes) -> int:
    return sum(height * width for height, width in shapes)


def _numbers(*shape: int) -> Tensor:
    """Return numbers between -1 and 1 that no generator is needed for."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).mul_(1.7).sin_().view(shape)


def _give(output: Tensor) -> Any:
    """Return a projection with a given output."""
    return lambda _: output


def _pass(x: Tensor) -> Tensor:
    return x
