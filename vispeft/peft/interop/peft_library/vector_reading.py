"""Methods of the peft library with few numbers for each site, converted to ours: IA3, VeRA and FourierFT."""

from __future__ import annotations

import math
import re

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
from vispeft.peft.interop.peft_library.options import Options
from vispeft.peft.methods.base import widths
from vispeft.peft.methods.fourier import FourierFT
from vispeft.peft.methods.scale_shift import IA3
from vispeft.peft.methods.vera import VeRA

_SCALES_D, _SCALES_B = "vera_lambda_d", "vera_lambda_b"
_VERA_SHARED = ("base_model.vera_A", "base_model.vera_B")


def read_ia3(source: Directory, model: nn.Module) -> Contents:
    """Return the IA3 of a directory."""
    source.options.check(known_options.IA3)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, ("ia3_l",), "ia3_")
    contents.full = full_tensors(source, tree, others)
    targets = source.options.names("feedforward_modules")
    for site, tensors in sites.items():
        name, module = module_at(source, tree, site)
        check_replaceable(source, tree, name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise CheckpointError(f"`{source.path}` has IA3 at `{name}`, a {type(module).__name__}, not served here.")
        method = IA3(side="input" if _is_feedforward(name, targets) else "output")
        size = widths(module).inputs if method.side == "input" else widths(module).outputs
        contents.add(name, method, {"gain": check_shape(source, name, tensors["ia3_l"].flatten(), (size,))})
    return contents


def read_vera(source: Directory, model: nn.Module) -> Contents:
    """Return the VeRA of a directory, whose projections are in the file or drawn again."""
    source.options.check(known_options.VERA)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, (_SCALES_D, _SCALES_B), "vera_lambda")
    shared = [others.pop(name, None) for name in _VERA_SHARED]
    contents.full = full_tensors(source, tree, others)
    modules = [module_at(source, tree, site) for site in sites]
    for name, module in modules:
        if not isinstance(module, nn.Linear):
            raise CheckpointError(f"`{source.path}` has VeRA at `{name}`, a {type(module).__name__}, not served here.")
        check_replaceable(source, tree, name)
    rank = source.options.count("r", 256)
    if not modules:
        return contents
    a, b = _projections(source, [module for _, module in modules], rank, shared)
    for (name, _), (site, tensors) in zip(modules, sites.items(), strict=True):
        check_parts(source, site, tensors, (_SCALES_D, _SCALES_B))
        scales = {"scale_d": tensors[_SCALES_D], "scale_b": tensors[_SCALES_B]}
        contents.add(name, VeRA(rank), scales | {"projections.a": a, "projections.b": b})
    return contents


def _projections(
    source: Directory, modules: list[nn.Module], rank: int, shared: list[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return A [r, in] and B [out, r] of the widest map: those of the file, or those of the library's seed."""
    outputs, inputs = (max(module.get_parameter("weight").shape[side] for module in modules) for side in (0, 1))
    a, b = shared
    if a is None or b is None:
        if a is not None or b is not None or source.options.values.get("save_projection"):
            raise CheckpointError(f"`{source.path}` is damaged: it lacks {_VERA_SHARED[0 if a is None else 1]}.")
        key = source.options.values.get("projection_prng_key", 0)
        if type(key) is not int:
            raise source.options.wrong("projection_prng_key", "an integer")
        generator = torch.Generator().manual_seed(key)
        a, b = (_uniform(shape, generator) for shape in ((rank, inputs), (outputs, rank)))
    return check_shape(source, _VERA_SHARED[0], a, (rank, inputs)), check_shape(
        source, _VERA_SHARED[1], b, (outputs, rank)
    )


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return a Kaiming-uniform matrix as the library draws it from its seed."""
    bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def read_fourierft(source: Directory, model: nn.Module) -> Contents:
    """Return the FourierFT of a directory, whose places are drawn by its seed as there."""
    source.options.check(known_options.FOURIERFT)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, ("fourierft_spectrum",), "fourierft_")
    contents.full = full_tensors(source, tree, others)
    seed = source.options.values.get("random_loc_seed", 777)
    if type(seed) is not int:
        raise source.options.wrong("random_loc_seed", "an integer")
    scale = source.options.number("scaling", 150)
    for site, tensors in sites.items():
        name, module = module_at(source, tree, site)
        check_replaceable(source, tree, name)
        if not isinstance(module, nn.Linear):
            raise CheckpointError(
                f"`{source.path}` has FourierFT at `{name}`, a {type(module).__name__}, not served here."
            )
        spectrum = tensors["fourierft_spectrum"]
        count, size = spectrum.numel(), module.weight.numel()
        check_shape(source, name, spectrum, (count,))
        if count != _frequencies(source, name) or not 1 <= count <= size:
            raise CheckpointError(
                f"`{source.path}` is damaged: `{name}`, a weight of {size} numbers, has {count} frequencies, but "
                f"{_frequencies(source, name)} in its configuration."
            )
        method = FourierFT(count, scale, seed)
        places = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]
        buffer = "x".join(str(length) for length in module.weight.shape)
        contents.add(name, method, {"update.spectrum": spectrum, f"update.places.places_{buffer}": places})
    return contents


def _frequencies(source: Directory, name: str) -> int:
    """Return the configured number of frequencies of one site, by the library's rule for this table."""
    table = source.options.values.get("n_frequency_pattern") or {}
    if not isinstance(table, dict):
        raise source.options.wrong("n_frequency_pattern", "values by pattern")
    try:
        key = next((key for key in table if re.match(rf".*\.{key}$", name)), name)
    except re.error as error:
        raise source.options.wrong("n_frequency_pattern", f"patterns that can be read ({error})") from error
    return Options(source.path, {key: table[key]} if key in table else source.options.values).count(
        key if key in table else "n_frequency", 1000
    )


def _is_feedforward(name: str, targets: str | list[str]) -> bool:
    """Return True for a module whose input the library scales: named by a pattern, or by an end of its name."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name.endswith(target) for target in targets)
