"""Methods of the peft library with products of matrices, converted to ours: AdaLoRA, LoHa and LoKr."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.peft.interop.peft_library import known_options
from vispeft.peft.interop.peft_library.contents import (
    Contents,
    check_parts,
    check_replaceable,
    check_shape,
    module_at,
    split,
)
from vispeft.peft.interop.peft_library.directory import Directory
from vispeft.peft.interop.peft_library.full_reading import full_tensors
from vispeft.peft.interop.peft_library.names import Tree
from vispeft.peft.methods.adalora import AdaLoRA
from vispeft.peft.methods.products import LoHa, LoKr, kronecker_shapes

_LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOHA_KERNELS = ("hada_t1", "hada_t2")
_LOKR_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

# the library adds this to the rank by which it divides
EPSILON = 1e-5


def read_adalora(source: Directory, model: nn.Module) -> Contents:
    """Return the AdaLoRA of a directory; a site that has lost all of its triplets is left out."""
    source.options.check(known_options.ADALORA)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, ("lora_A", "lora_B", "lora_E"), "lora_")
    contents.full = full_tensors(source, tree, others)
    start = source.options.count("init_r", 12)
    alpha = source.options.number("lora_alpha", 8)
    scale = (alpha if alpha > 0 else start) / (start + EPSILON)
    target, dropout = source.options.count("target_r", 8), source.options.number("lora_dropout", 0)
    for site, tensors in sites.items():
        check_parts(source, site, tensors, ("lora_A", "lora_B", "lora_E"))
        name, weight = _weight_at(source, tree, site)
        a, b, e = (tensors[f"lora_{letter}"] for letter in "ABE")
        rank = e.numel()
        check_shape(source, f"{site}.lora_A", a, (rank, weight[0].numel()))
        check_shape(source, f"{site}.lora_B", b, (weight.shape[0], rank))
        if rank == 0:
            continue
        ones = [1] * (weight.ndim - 2)
        method = AdaLoRA(rank, scale * rank, dropout=dropout, target_rank=float(min(target, rank)))
        factors = {"a": a.reshape(rank, *weight.shape[1:]), "b": b.reshape(-1, rank, *ones), "e": e.flatten()}
        contents.add(name, method, factors | {"triplets.is_kept": torch.ones(rank, dtype=torch.bool)})
    return contents


def read_loha(source: Directory, model: nn.Module) -> Contents:
    """Return the LoHa of a directory."""
    source.options.check(known_options.PRODUCTS)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, (*_LOHA_PARTS, *_LOHA_KERNELS), "hada_")
    contents.full = full_tensors(source, tree, others)
    for site, tensors in sites.items():
        check_parts(source, site, tensors, _LOHA_PARTS)
        name, weight = _weight_at(source, tree, site)
        rank = source.options.rank("r", name, 8)
        alpha = source.options.for_site("alpha", "alpha_pattern", name, 8)
        factors = {}
        for index in "12":
            b, a = tensors[f"hada_w{index}_a"], tensors[f"hada_w{index}_b"]
            if f"hada_t{index}" in tensors:
                b, a = _flat_kernel(source, site, b, a, tensors[f"hada_t{index}"])
            factors[f"a{index}"] = check_shape(source, f"{site}.hada_w{index}_b", a, (rank, weight[0].numel()))
            factors[f"b{index}"] = check_shape(source, f"{site}.hada_w{index}_a", b, (weight.shape[0], rank))
        method = LoHa(rank, None if alpha == rank else alpha)
        contents.add(name, method, {f"update.{key}": value for key, value in factors.items()})
    return contents


def read_lokr(source: Directory, model: nn.Module) -> Contents:
    """Return the LoKr of a directory."""
    source.options.check(known_options.PRODUCTS)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, _LOKR_PARTS, "lokr_")
    contents.full = full_tensors(source, tree, others)
    for site, tensors in sites.items():
        name, weight = _weight_at(source, tree, site)
        scale = source.options.for_site("alpha", "alpha_pattern", name, 8) / source.options.rank("r", name, 8)
        c = _product(source, site, tensors, "lokr_w1")
        a, b = _second(source, site, tensors)
        factor = _factor(weight, c.shape)
        if factor == 0:
            raise CheckpointError(
                f"`{source.path}` has a factor {list(c.shape)} at `{name}`, a weight {list(weight.shape)}, which no "
                "`factor` of `lokr` makes."
            )
        (outputs, inputs), (rows, columns) = kronecker_shapes(weight, factor)
        rank = a.shape[0]
        check_shape(source, f"{site}.lokr_w1", c, (outputs, inputs))
        check_shape(source, f"{site}.lokr_w2_b", a, (rank, columns))
        check_shape(source, f"{site}.lokr_w2_a", b, (rows, rank))
        method = LoKr(rank, None if scale == 1 else scale * rank, factor)
        contents.add(name, method, {"update.c": c, "update.a": a, "update.b": b})
    return contents


def _weight_at(source: Directory, tree: Tree, site: str) -> tuple[str, Tensor]:
    """Return the name and the weight of a linear map or convolution."""
    name, module = module_at(source, tree, site)
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise CheckpointError(f"`{source.path}` adapts `{name}`, a {type(module).__name__}, which is not served here.")
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise CheckpointError(
            f"`{source.path}` adapts `{name}`, which pads by {module.padding_mode!r}: the library pads its update with "
            "zeros, which has no counterpart here."
        )
    check_replaceable(source, tree, name)
    return name, module.weight


def _flat_kernel(source: Directory, site: str, b: Tensor, a: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return B [out, r] and A [r, in * kh * kw] of factors [r, out], [r, in] and a kernel [r, r, kh, kw]."""
    if b.ndim != 2 or a.ndim != 2 or kernel.ndim != 4 or kernel.shape[:2] != (len(b), len(a)):
        raise CheckpointError(
            f"`{source.path}` is damaged: the kernel of `{site}` is {list(kernel.shape)}, but its factors are "
            f"{list(b.shape)} and {list(a.shape)}."
        )
    return b.t(), torch.einsum("ijkl,jc->ickl", kernel, a).flatten(1)


def _product(source: Directory, site: str, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a matrix of a site that is there whole or as two factors."""
    if name in tensors:
        if tensors[name].ndim != 2:
            raise CheckpointError(f"`{source.path}` is damaged: `{site}.{name}` is {list(tensors[name].shape)}.")
        return tensors[name]
    check_parts(source, site, tensors, (f"{name}_a", f"{name}_b"))
    left, right = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise CheckpointError(
            f"`{source.path}` is damaged: the factors of `{site}.{name}` are {list(left.shape)} and "
            f"{list(right.shape)}."
        )
    return left @ right


def _second(source: Directory, site: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A [r, in2] and B [out2, r] of the second matrix; one is an identity where the file has it whole."""
    if "lokr_w2" in tensors:
        whole = tensors["lokr_w2"].flatten(1)
        rows, columns = whole.shape
        one = torch.eye(min(rows, columns), dtype=whole.dtype)
        return (whole, one) if rows <= columns else (one, whole)
    check_parts(source, site, tensors, ("lokr_w2_a", "lokr_w2_b"))
    b, a = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    if "lokr_t2" in tensors:
        b, a = _flat_kernel(source, site, b, a, tensors["lokr_t2"])
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] == 0:
        raise CheckpointError(f"`{source.path}` is damaged: `{site}` has factors {list(b.shape)} and {list(a.shape)}.")
    return a, b


def _factor(weight: Tensor, shape: torch.Size) -> int | None:
    """Return the option `factor` that makes C of this shape; 0 where none does."""
    candidates = [None, *range(1, max(shape, default=0) + 1)]
    return next((factor for factor in candidates if kronecker_shapes(weight, factor)[0] == tuple(shape)), 0)
