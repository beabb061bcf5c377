"""Pairs of queries and targets over which the losses of matched predictions are summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from vispeft.losses.matcher import Match
from vispeft.structures import DenoisingPredictions, Targets


@dataclass(frozen=True)
class Pairs:
    """Predictions matched to a target, image after image.

    Predictions are numbered as rows, layer after layer, image after image: query `q` of image `b` in layer `n` of `Q`
    queries and `B` images is row `(n B + b) Q + q`. The denoising queries of all layers follow.

    rows: [M] int64
    targets: [M] int64 into the targets of all images, one after another
    weights: [M] 1, or one over the number of groups for denoising queries
    counts: pairs of each image
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor
    counts: tuple[int, ...]


def pairs_of(
    matches: Sequence[Sequence[Match]],
    num_queries: int,
    num_targets: Sequence[int],
    device: torch.device,
    *,
    denoising: DenoisingPredictions | None = None,
) -> Pairs:
    """Return all pairs of a batch, put together on the CPU and sent to `device` at once.

    matches: of each image (outer) and layer (inner)
    num_targets: of each image
    denoising: predictions whose queries are paired with the targets that they were made from
    """
    num_images, num_matching_rows = len(matches), len(matches[0]) * len(matches) * num_queries
    rows, targets, weights, counts = [], [], [], []
    first_target = 0
    for b, image_matches in enumerate(matches):
        row, target = _matched_pairs(image_matches, b, num_images, num_queries)
        weight = torch.ones(len(row))
        if denoising is not None:
            noised_row, noised_target = _denoising_pairs(denoising, b, num_images, num_targets[b])
            row, target = torch.cat((row, noised_row + num_matching_rows)), torch.cat((target, noised_target))
            weight = torch.cat((weight, torch.full((len(noised_row),), 1 / denoising.num_groups)))
        rows.append(row)
        targets.append(target + first_target)
        weights.append(weight)
        counts.append(len(row))
        first_target += num_targets[b]
    row, target, weight = (torch.cat(parts).to(device, non_blocking=True) for parts in (rows, targets, weights))
    return Pairs(row, target, weight, tuple(counts))


def mean_num_targets(targets: Sequence[Targets], device: torch.device) -> Tensor:
    """Return the targets per process, at least 1: the divisor of losses that are sums over pairs."""
    total = torch.tensor(float(sum(len(t) for t in targets)), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=1)


def _matched_pairs(
    matches: Sequence[Match], image_idx: int, num_images: int, num_queries: int
) -> tuple[Tensor, Tensor]:
    """Return rows and target indices of one image's matches, layer after layer."""
    rows = [m.query_idx + (n * num_images + image_idx) * num_queries for n, m in enumerate(matches)]
    return torch.cat(rows), torch.cat([m.target_idx for m in matches])


def _denoising_pairs(
    denoising: DenoisingPredictions, image_idx: int, num_images: int, num_targets: int
) -> tuple[Tensor, Tensor]:
    """Rows, counted from the first denoising row, and target indices of one image's denoising queries; no padding."""
    num_queries = denoising.num_groups * denoising.group_size
    layer = (torch.arange(len(denoising.layers)) * num_images + image_idx) * num_queries
    group = torch.arange(denoising.num_groups) * denoising.group_size
    target = torch.arange(num_targets)
    rows = layer[:, None, None] + group[:, None] + target  # [L, groups, T]
    return rows.flatten(), target.expand(rows.shape).flatten()
