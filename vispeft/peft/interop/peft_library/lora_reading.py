"""LoRA and DoRA of the peft library, converted to ours.

A site has `lora_A.weight` [r, in, ...] and `lora_B.weight` [out, r, ...], for DoRA `lora_magnitude_vector` [out] or
[1, out, 1, 1]; an embedding `lora_embedding_A` [r, rows] and `lora_embedding_B` [columns, r]. nn.MultiheadAttention has
both of its projections adapted there, under `<site>` and `<site>.base_layer.out_proj`; here they are the parameters
`in_proj_weight` and `out_proj.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
from vispeft.peft.interop.peft_library.lora_factors import (
    Convolution,
    Factors,
    check_conv,
    from_grouped,
    is_plain_embedding,
    row_lengths,
)
from vispeft.peft.interop.peft_library.names import Tree
from vispeft.peft.interop.peft_library.starts import changes_base, from_start
from vispeft.peft.methods.dora import DoRA
from vispeft.peft.methods.lora import LoRA

OUT_PROJ = ".base_layer.out_proj"

# the library (0.21) adds the product of an attention's output projection twice, in its forward pass and in its merge
OUT_PROJ_TIMES = 2.0

_PARTS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
)


@dataclass(frozen=True)
class _Place:
    """Site of the library in this model.

    site: our name of it
    key: name by which the library's patterns find it
    owner: name of the module that the library wraps
    """

    site: str
    key: str
    owner: str
    module: nn.Module


def read_lora(source: Directory, model: nn.Module) -> Contents:
    """Return the LoRA or DoRA of a directory."""
    source.options.check(known_options.LORA)
    tree, contents = Tree(model), Contents()
    sites, others = split(source, _PARTS, "lora_")
    contents.full = full_tensors(source, tree, others)
    parameters = _target_parameters(source, tree) if source.options.names("target_parameters") else {}
    for name, tensors in sites.items():
        place = parameters.get(name) or _place(source, tree, name)
        if place.site in contents.methods:
            raise CheckpointError(f"`{source.path}` has two adapters for `{place.site}`, which it cannot mean.")
        factors = _factors(source, place, tensors)
        # the library cannot have trained one that does not run there
        if factors.b.count_nonzero():
            check_replaceable(source, tree, place.owner)
        _add(source, contents, place, factors)
        if "lora_B.bias" in tensors:
            _add_bias(source, contents, place, tensors["lora_B.bias"], factors)
    return contents


def _add(source: Directory, contents: Contents, place: _Place, factors: Factors) -> None:
    """Add the delta of one site."""
    dropout = source.options.number("lora_dropout", 0) if place.site == place.owner else 0.0
    kind = LoRA if factors.magnitude is None else DoRA
    method = kind(factors.rank, None if factors.scale == 1 else factors.scale * factors.rank, dropout=dropout)
    tensors = {"a": factors.a, "b": factors.b}
    if factors.magnitude is not None:
        tensors["m"] = _growth(source, place, factors.magnitude)
    contents.add(place.site, method, tensors)


def _factors(source: Directory, place: _Place, tensors: Mapping[str, Tensor]) -> Factors:
    """Return the factors of one site in our form."""
    options, module = source.options, place.module
    is_embedding = "lora_embedding_A" in tensors or "lora_embedding_B" in tensors
    parts = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
    has_dora = options.flag("use_dora")
    check_parts(source, place.key, tensors, (*parts, *(["lora_magnitude_vector"] if has_dora else [])))
    a, b = (tensors[part] for part in parts)
    if a.ndim != b.ndim or a.ndim < 2:
        raise CheckpointError(
            f"`{source.path}` is damaged: the factors of `{place.key}` are {list(a.shape)} and {list(b.shape)}."
        )
    if is_embedding:
        a, b = b.t(), a.t()
    rank = options.rank("r", place.key, 8)
    factors = Factors(a, b, _scale(source, place, rank), tensors["lora_magnitude_vector"] if has_dora else None)
    has_start = changes_base(options)
    if not has_start and factors.rank != rank:
        raise CheckpointError(
            f"`{source.path}` is damaged: `{place.key}` has rank {factors.rank}, but rank {rank} in its configuration."
        )
    if isinstance(module, nn.Embedding):
        _check_embedding(source, place, has_dora=has_dora)
    if has_start:
        if not isinstance(module, nn.Linear):
            raise CheckpointError(f"`{source.path}` changes the start of `{place.key}`, which is no linear map.")
        _check_factors(source, place, factors)
        return from_start(factors, module, options, rank)
    if isinstance(module, Convolution):
        return _conv_factors(source, place, factors)
    return factors


def _check_factors(source: Directory, place: _Place, factors: Factors) -> None:
    """Refuse factors of a linear map that do not fit its weight."""
    outputs, inputs = place.module.get_parameter("weight").shape
    check_shape(source, f"{place.key}.lora_A", factors.a, (factors.rank, inputs))
    check_shape(source, f"{place.key}.lora_B", factors.b, (outputs, factors.rank))


def _conv_factors(source: Directory, place: _Place, factors: Factors) -> Factors:
    """Return the factors of a convolution in our form."""
    module = place.module
    assert isinstance(module, Convolution)
    check_conv(place.site, module, has_magnitude=factors.magnitude is not None)
    groups = module.groups
    check_shape(source, f"{place.key}.lora_A", factors.a, (factors.rank, module.in_channels, *module.kernel_size))
    ones = [1] * len(module.kernel_size)
    check_shape(source, f"{place.key}.lora_B", factors.b, (module.out_channels, factors.rank // groups, *ones))
    ours = from_grouped(factors, module) if factors.rank % groups == 0 else None
    if ours is None:
        raise CheckpointError(
            f"`{source.path}` has factors at `{place.key}`, a convolution with {groups} groups, that mix the channels "
            "of different groups. Here a group reads its own channels alone, so they have no counterpart."
        )
    return ours


def _check_embedding(source: Directory, place: _Place, *, has_dora: bool) -> None:
    """Refuse an embedding whose rows are scaled, cut or given magnitudes."""
    module = place.module
    if has_dora or not is_plain_embedding(module):
        what = "DoRA" if has_dora else "LoRA on an embedding that scales or cuts its rows"
        raise CheckpointError(f"`{source.path}` has {what} at `{place.key}`, which has no counterpart here.")


def _scale(source: Directory, place: _Place, rank: int) -> float:
    """Return the library's factor of a site's product: alpha over the rank, or over the rank's square root."""
    alpha = source.options.for_site("lora_alpha", "alpha_pattern", place.key, 8)
    times = OUT_PROJ_TIMES if place.site == f"{place.owner}.out_proj.weight" else 1.0
    return times * alpha / (rank**0.5 if source.options.flag("use_rslora") else rank)


def _place(source: Directory, tree: Tree, name: str) -> _Place:
    """Return the place of a site that the library names by its module."""
    owner = name.removesuffix(OUT_PROJ)
    if owner != name and isinstance(tree.modules.get(owner), nn.MultiheadAttention):
        return _Place(f"{owner}.out_proj.weight", owner, owner, tree.modules[owner])
    site, module = module_at(source, tree, name)
    if isinstance(module, nn.MultiheadAttention):
        return _Place(f"{site}.in_proj_weight", site, site, module)
    return _Place(f"{site}.weight" if isinstance(module, nn.Embedding) else site, site, site, module)


def _target_parameters(source: Directory, tree: Tree) -> dict[str, _Place]:
    """Return the places of the parameters that `target_parameters` names, by the library's name of their wrappers.

    Wrappers of several parameters of a module lie in each other, the first parameter's innermost.
    """
    targets = source.options.names("target_parameters")
    places: dict[str, _Place] = {}
    for name, module in tree.modules.items():
        keys = [key for leaf in _own_names(module) if _is_target(key := f"{name}.{leaf}", targets)]
        for depth, key in enumerate(reversed(keys)):
            is_weight = key == f"{name}.weight" and isinstance(module, nn.Linear)
            places[name + ".base_layer" * depth] = _Place(name if is_weight else key, key, name, module)
    return places


def _is_target(key: str, targets: str | list[str]) -> bool:
    return key in targets or any(key.endswith(f".{target}") for target in targets)


def _own_names(module: nn.Module) -> Iterator[str]:
    for name, _ in module.named_parameters(recurse=False):
        yield name


def _add_bias(source: Directory, contents: Contents, place: _Place, bias: Tensor, factors: Factors) -> None:
    """Add the trained bias of B to the bias of the base, which is trained in full here."""
    own = place.module.bias if isinstance(place.module, nn.Linear | Convolution) else None
    if own is None or factors.magnitude is not None:
        reason = "with DoRA" if own is not None else "at a map without a bias"
        raise CheckpointError(
            f"`{source.path}` has `lora_bias` {reason}, `{place.key}`, which has no counterpart here."
        )
    name = f"{place.site}.bias"
    start = contents.full.get(name, own.detach())
    check_shape(source, f"{place.key}.lora_B.bias", bias, own.shape)
    contents.full[name] = start + factors.scale * bias.to(start)


def _growth(source: Directory, place: _Place, magnitude: Tensor) -> Tensor:
    """Return the library's magnitudes of a module less the lengths of its frozen rows [out]."""
    module = place.module
    if not isinstance(module, nn.Linear | Convolution) or magnitude.numel() != module.weight.shape[0]:
        raise CheckpointError(
            f"`{source.path}` does not fit this model: `{place.key}` has {magnitude.numel()} magnitudes in the file, "
            f"but is a {type(module).__name__} of another size or kind in the model."
        )
    if not module.weight.is_floating_point():
        raise CheckpointError(f"`{source.path}` has DoRA at `{place.key}`, whose weights are quantised here.")
    lengths = row_lengths(module.weight).cpu()
    return magnitude.flatten().to(lengths.dtype) - lengths
