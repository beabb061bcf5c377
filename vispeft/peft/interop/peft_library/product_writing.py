"""AdaLoRA, LoHa and LoKr of ours, in the form of the peft library."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from vispeft.peft.inject import Attached
from vispeft.peft.interop.peft_library.contents import TheirContents, no_counterpart
from vispeft.peft.interop.peft_library.lora_factors import whole_rows
from vispeft.peft.interop.peft_library.lora_writing import at_site, common_dropout
from vispeft.peft.interop.peft_library.names import Tree
from vispeft.peft.interop.peft_library.product_reading import EPSILON
from vispeft.peft.methods.adalora import ConvAdaLoRA, LinearAdaLoRA
from vispeft.peft.methods.products import HadamardFactors, KroneckerFactors
from vispeft.peft.methods.weight_update import ConvUpdate, LinearUpdate, Update

Kind = TypeVar("Kind", bound=Update)


def write_adalora(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the AdaLoRA of a model, with the triplets that are kept and its scales in their values."""
    kept: dict[str, Tensor] = {}
    contents = TheirContents({}, bias="lora_only")
    for item in items:
        delta = item.delta
        if not isinstance(delta, LinearAdaLoRA | ConvAdaLoRA) or item.site in contents.tensors:
            raise no_counterpart(f"`{item.key}`")
        _check_kernels(item, tree)
        module = tree.modules[item.site]
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            raise no_counterpart(f"`{item.key}`, at a convolution with groups")
        kept[item.site] = delta.triplets.get_buffer("is_kept").cpu()
        b = whole_rows(delta.b, delta.rows, delta.outputs).flatten(1).detach()
        contents.tensors[item.site] = {
            "lora_A": delta.a.detach().flatten(1)[kept[item.site]],
            "lora_E": delta.scale * delta.e.detach()[kept[item.site], None],
            "lora_B": b[:, kept[item.site]],
        }
    rank = max(len(each) for each in kept.values())
    for tensors in contents.tensors.values():
        # alpha is 1, which the library divides by this
        tensors["lora_E"] = tensors["lora_E"] * (rank + EPSILON)
    counts = {site: int(each.sum()) for site, each in kept.items()}
    # the tensors have the kept triplets alone, which the library takes for the first ones
    patterns = {f"{site}.lora_E": [True] * count + [False] * (rank - count) for site, count in counts.items()}
    is_whole = set(counts.values()) == {rank}
    contents.options = {
        "peft_type": "ADALORA",
        "init_r": rank,
        "target_r": max(1, round(sum(counts.values()) / len(counts))),
        "lora_alpha": 1,
        "lora_dropout": common_dropout(items),
        "rank_pattern": None if is_whole else patterns,
        "total_step": 1,
    }
    return contents


def write_loha(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the LoHa of a model."""
    contents = TheirContents({})
    scales: dict[str, tuple[int, float]] = {}
    for item, factors in _updates(items, HadamardFactors):
        _check_kernels(item, tree)
        scales[item.site] = factors.a1.shape[0], factors.scale
        contents.tensors[item.site] = {
            "hada_w1_a": factors.b1,
            "hada_w1_b": factors.a1,
            "hada_w2_a": factors.b2,
            "hada_w2_b": factors.a2,
        }
    contents.options = {"peft_type": "LOHA", "use_effective_conv2d": False, **_ranks_and_alphas(scales)}
    return contents


def write_lokr(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the LoKr of a model; its second matrix is whole where the library has it whole."""
    contents = TheirContents({})
    found = list(_updates(items, KroneckerFactors))
    factor = _common_factor(found, tree)
    scales: dict[str, tuple[int, float]] = {}
    for item, factors in found:
        _check_kernels(item, tree)
        rank, kernel = factors.a.shape[0], tree.modules[item.site].get_parameter("weight").shape[2:]
        scales[item.site] = rank, factors.scale
        columns = factors.a.shape[1] // kernel.numel()
        if rank < max(factors.b.shape[0], columns) / 2:
            second: dict[str, Tensor] = {"lokr_w2_a": factors.b, "lokr_w2_b": factors.a}
        else:
            whole = factors.b.detach() @ factors.a.detach()
            second = {"lokr_w2": whole.view(-1, columns, *kernel)}
        contents.tensors[item.site] = {"lokr_w1": factors.c, **second}
    contents.options = {"peft_type": "LOKR", "decompose_factor": factor, **_ranks_and_alphas(scales)}
    return contents


def _updates(items: Sequence[Attached], kind: type[Kind]) -> Iterator[tuple[Attached, Kind]]:
    """Yield each delta with its factors; refuse those of parameters and several at one site."""
    seen = set()
    for item in items:
        update = item.delta.update if isinstance(item.delta, LinearUpdate | ConvUpdate) else None
        if not isinstance(update, kind) or item.site in seen:
            raise no_counterpart(f"`{item.key}`")
        seen.add(item.site)
        yield item, update


def _check_kernels(item: Attached, tree: Tree) -> None:
    """Refuse a convolution that pads with other values than zeros, as the library's update does."""
    module = tree.modules[item.site]
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise no_counterpart(f"`{item.key}`, at a convolution with padding {module.padding_mode!r}")


def _ranks_and_alphas(scales: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Return the options of ranks and scales by site, as JSON has them."""
    ranks = {site: rank for site, (rank, _) in scales.items()}
    alphas = {site: rank * scale for site, (rank, scale) in scales.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": {at_site(site): value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {at_site(site): value for site, value in alphas.items() if value != alpha},
    }


def _common_factor(found: Sequence[tuple[Attached, KroneckerFactors]], tree: Tree) -> int:
    """Return the library's `decompose_factor` that gives the sizes of all sites."""
    sizes: list[tuple[int, int]] = []
    for item, factors in found:
        outputs, inputs = tree.modules[item.site].get_parameter("weight").shape[:2]
        sizes += list(zip((outputs, inputs), factors.c.shape, strict=True))
    largest = max((first for _, first in sizes), default=1)
    candidates: list[int] = [-1, *range(1, largest + 1)]
    for candidate in candidates:
        if all(_first_factor(size, candidate) == first for size, first in sizes):
            return candidate
    raise no_counterpart("LoKr with these `factor`s: it has one `decompose_factor` for all sites")


def _first_factor(size: int, factor: int) -> int:
    """Return the first of the two factors into which the library splits a size."""
    if factor > 0 and size % factor == 0:
        return factor
    bound = size if factor == -1 else factor
    largest: int = next(each for each in range(min(bound, math.isqrt(size)), 0, -1) if size % each == 0)
    return largest
