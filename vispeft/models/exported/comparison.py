"""Comparison of an exported graph with its model, on test images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.models.exported.description import output_names

# sizes of batches, other than the traced one
_BATCHES = (1, 3)
# share of noise in the test images, beside smooth colours
_NOISE = 0.3
# relative deviation of a graph's outputs from the model's
_TOLERANCE = 1e-3
# share of the queries that must agree: equal scores, and mask logits of zero, may be rounded to another choice
_AGREEING = 0.95


def example_batches(num_channels: int, side: int) -> list[Tensor]:
    """Return normalised images in batches of several sizes: [B, C, side, side]."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in _BATCHES:
        colours = torch.randn(size, num_channels, 6, 6, generator=generator)
        smooth = F.interpolate(colours, (side, side), mode="bilinear", align_corners=False)
        batches.append(smooth + _NOISE * torch.randn(smooth.shape, generator=generator))
    return batches


def differing_output(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> str | None:
    """Return the name of an output of a graph that is not the model's within rounding; None where all agree.

    Queries are compared in any order, since equal scores in their selection leave it open.
    """
    names = output_names(len(expected))
    for name, wanted, given in zip(names, expected, found, strict=True):
        if wanted.shape != given.shape or not bool(given.isfinite().all()):
            return name
    *of_queries, (features_name, wanted_features, given_features) = zip(names, expected, found, strict=True)
    if _deviation(wanted_features, given_features).max() > _TOLERANCE:
        return features_name
    wanted_rows = torch.cat([_scaled(wanted, wanted) for _, wanted, _ in of_queries], dim=-1)
    given_rows = torch.cat([_scaled(given, wanted) for _, wanted, given in of_queries], dim=-1)
    nearest = torch.cdist(wanted_rows, given_rows, p=float("inf")).argmin(-1)  # [B, Q]
    for name, wanted, given in of_queries:
        matched = given.gather(1, nearest[..., None].expand(-1, -1, given.shape[-1]))
        agrees = _deviation(wanted, matched).amax(-1) <= _TOLERANCE
        if agrees.float().mean() < _AGREEING:
            return name
    return None


def _scaled(tensor: Tensor, wanted: Tensor) -> Tensor:
    return tensor / wanted.abs().amax().clamp(min=1e-12)


def _deviation(wanted: Tensor, given: Tensor) -> Tensor:
    """Return absolute differences relative to the largest wanted value."""
    return _scaled((wanted - given).abs(), wanted)
