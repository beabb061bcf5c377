"""Adapter directories of Hugging Face's `peft` library: LoRA, DoRA and parameters trained in full, read and written.

`adapter_model.safetensors` holds `base_model.model.<site>.lora_A.weight` [r, in, ...], `lora_B.weight` [out, r, ...],
for DoRA `lora_magnitude_vector` [out] or [1, out, 1, 1], and tensors trained in full by their own names;
`adapter_config.json` the ranks and scales. nn.MultiheadAttention has both of its projections adapted there, under
`<site>` and `<site>.base_layer.out_proj`; here they are the parameters `in_proj_weight` and `out_proj.weight`. Such a
directory names no base: a wrong one of the same shapes is not refused.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.io.json_files import UnreadableJsonError, load_json, write_json
from vispeft.io.tensors import own_copies, read_tensors, write_tensors
from vispeft.peft.checkpoint import copy_tensors, own_keys, resolved_plan, state_tensors
from vispeft.peft.inject import attached, inject, is_injected, remove
from vispeft.peft.methods.base import Delta, WeightDelta
from vispeft.peft.methods.dora import ConvDoRA, DoRA, LinearDoRA
from vispeft.peft.methods.lora import ConvLoRA, LinearLoRA, LoRA, WeightLoRA
from vispeft.peft.plan import Plan
from vispeft.peft.wrappers import unwrapped

_PREFIX = "base_model.model."
_OUT_PROJ = ".base_layer.out_proj"

# the library (0.21) adds the product of an attention's output projection twice, in its forward pass and in its merge
_OUT_PROJ_TIMES = 2.0

# options that change what the tensors mean, with the value under which they do not
_PLAIN = {"use_qalora": False, "use_bdlora": None, "lora_bias": False, "fan_in_fan_out": False}


@dataclass(frozen=True)
class _Factors:
    """Tensors of one site as the library has them.

    a: [r, in, ...]
    b: [out, r, ...]
    scale: of their product
    magnitude: lengths of the weight's rows [out], for DoRA
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


def load_peft(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Inject the LoRA or DoRA of a `peft` directory into a model without a plan, in place, and load its tensors."""
    model, source = unwrapped(model), Path(directory)
    if is_injected(model):
        raise PlanError("The model has a plan already. Call `remove` or `merge` first.")
    config = _read_config(source / "adapter_config.json")
    tensors, _ = read_tensors(source / "adapter_model.safetensors")
    factors, full = _split(tensors, config, source)
    modules = dict(model.named_modules())
    plan: dict[str, LoRA | DoRA] = {}
    state = dict(full)
    for name, pair in factors.items():
        site = _our_site(name, modules, source)
        rank = pair.a.shape[0]
        kind = LoRA if pair.magnitude is None else DoRA
        if isinstance(module := modules.get(site), nn.Conv2d):
            _check_conv(site, module)
        plan[site] = kind(rank, None if pair.scale == 1 else pair.scale * rank)
        state |= {f"{site}.{kind.name}.a": pair.a, f"{site}.{kind.name}.b": pair.b}
        if pair.magnitude is not None:
            state[f"{site}.{kind.name}.m"] = _growth(modules[name], pair.magnitude, name, source)
    parameters = dict(model.named_parameters())
    trained = tuple(name for name in full if name in parameters)
    try:
        inject(model, Plan(plan, trained))
    except PlanError as error:
        raise CheckpointError(f"`{source}` does not fit this model: {error}") from error
    try:
        copy_tensors(model, state, trained, source)
    except CheckpointError:
        remove(model)
        raise


def save_peft(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write the model's LoRA or DoRA and what it trained in full as a directory that the `peft` library reads.

    Parts of a fused projection become one pair of factors with zeros between the parts, so that the library computes
    the same.
    """
    model, target = unwrapped(model), Path(directory)
    plan, state = resolved_plan(model), state_tensors(model)
    own = own_keys(model, plan.train, state)
    factors = _their_factors(model)
    tensors = {f"{_PREFIX}{name}.lora_A.weight": pair.a for name, pair in factors.items()}
    tensors |= {f"{_PREFIX}{name}.lora_B.weight": pair.b for name, pair in factors.items()}
    for name, pair in factors.items():
        if pair.magnitude is not None:
            shape = (1, -1, 1, 1) if pair.a.ndim == 4 else (-1,)
            tensors[f"{_PREFIX}{name}.lora_magnitude_vector"] = pair.magnitude.view(shape)
    prefixes = tuple(f"{item.key}." for item in attached(model))
    full = {key: state[key] for key in own if not prefixes or not key.startswith(prefixes)}
    bare = sorted(key for key in full if "." not in key)
    if bare or not factors:
        what = f"`{bare[0]}`, a parameter of the model itself" if bare else "a plan without LoRA or DoRA"
        raise PlanError(f"The peft library has no counterpart for {what}. Save it with `save_adapter`.")
    tensors |= {f"{_PREFIX}{key}": value for key, value in full.items()}
    copies = own_copies(dict(sorted(tensors.items())))
    write_tensors(target / "adapter_model.safetensors", copies, {"format": "pt"})
    config = _config(factors, sorted({key.rpartition(".")[0] for key in full}))
    write_json(target / "adapter_config.json", dict(sorted(config.items())), raises=CheckpointError, indent=2)


def _read_config(path: Path) -> Mapping[str, Any]:
    """Return the library's configuration; refuse one that is no LoRA or has options without a counterpart."""
    try:
        config = load_json(path)
    except UnreadableJsonError as error:
        raise CheckpointError(f"`{path}`, a configuration of the peft library, {error.sentence}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise CheckpointError(
            f"`{path}` must have the peft_type LORA, but has {kind!r}, which has no counterpart here."
        )
    for option, plain in _PLAIN.items():
        if config.get(option, plain) != plain:
            raise CheckpointError(f"`{path}` has `{option}` set to {config[option]!r}, which has no counterpart here.")
    return config


def _split(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: Path
) -> tuple[dict[str, _Factors], dict[str, Tensor]]:
    """Return the file's factors by the library's site name, and what was trained in full by its own name."""
    names = {key.removeprefix(_PREFIX): value for key, value in tensors.items()}
    sites = [name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")]
    factors = {}
    for site in sites:
        a, b = names.pop(f"{site}.lora_A.weight"), names.pop(f"{site}.lora_B.weight", None)
        if b is None:
            raise CheckpointError(f"`{source}` is damaged: `{site}` has lora_A, but no lora_B.")
        magnitude = names.pop(f"{site}.lora_magnitude_vector", None) if config.get("use_dora") else None
        if magnitude is None and config.get("use_dora"):
            raise CheckpointError(f"`{source}` is damaged: `{site}` has DoRA, but no lora_magnitude_vector.")
        factors[site] = _Factors(a, b, _scale(site, a.shape[0], config), magnitude)
    odd = [name for name in names if "lora_" in name]
    if odd:
        raise CheckpointError(f"`{source}` has tensors that have no counterpart here: {', '.join(sorted(odd)[:3])}.")
    return factors, names


def _scale(site: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return the library's factor of a site's product: alpha over the rank, or over the rank's square root."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    owner = site.removesuffix(_OUT_PROJ)
    matching = [value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", owner)]
    alpha = float(matching[0] if matching else config.get("lora_alpha", 8))
    times = _OUT_PROJ_TIMES if site.endswith(_OUT_PROJ) else 1.0
    return times * alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _our_site(name: str, modules: Mapping[str, nn.Module], source: Path) -> str:
    """Return our name of the library's site."""
    if name.endswith(_OUT_PROJ):
        return f"{name.removesuffix(_OUT_PROJ)}.out_proj.weight"
    if name not in modules:
        raise CheckpointError(f"`{source}` was trained on another base: this model has no `{name}`.")
    return f"{name}.in_proj_weight" if isinstance(modules[name], nn.MultiheadAttention) else name


def _their_factors(model: nn.Module) -> dict[str, _Factors]:
    """Return the model's deltas in the library's form, by the library's site names."""
    factors: dict[str, _Factors] = {}
    modules = dict(model.named_modules())
    for item in attached(model):
        if isinstance(item.delta, ConvLoRA | ConvDoRA):
            _check_conv(item.site, modules[item.site])
        name = _their_site(item.site, item.delta, modules)
        if name is None or name in factors:
            raise PlanError(f"`{item.key}` has no counterpart in the peft library. Save it with `save_adapter`.")
        factors[name] = _whole(item.delta)
    plain = [name for name, pair in factors.items() if pair.magnitude is None]
    if 0 < len(plain) < len(factors):
        raise PlanError(
            f"The peft library has DoRA at every site or at none, but here `{plain[0]}` has LoRA and others have DoRA. "
            f"Save it with `save_adapter`."
        )
    for name in [name for name in factors if isinstance(modules.get(name), nn.MultiheadAttention)]:
        _complete_attention(factors, name, modules[name])
    for name in [name.removesuffix(_OUT_PROJ) for name in factors if name.endswith(_OUT_PROJ)]:
        if name not in factors:
            _complete_attention(factors, name, modules[name])
    return factors


def _check_conv(site: str, module: nn.Module) -> None:
    """Refuse a convolution that the library (0.21) does not follow: its update pads with zeros, without dilation."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if module.groups > 1:
        raise PlanError(
            f"The peft library has other factors for convolutions with groups: `{site}` has {module.groups}. Use "
            "`save_adapter` and `load_adapter`."
        )
    if module.padding_mode != "zeros" or set(module.dilation) != {1}:
        raise PlanError(
            f"The peft library forgets dilation and padding mode: at `{site}`, with dilation {module.dilation} and "
            f"padding {module.padding_mode!r}, it computes another update. Use `save_adapter` and `load_adapter`."
        )


def _their_site(site: str, delta: Delta | WeightDelta, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the library's name of our site, or None where it has none."""
    if isinstance(delta, LinearLoRA | LinearDoRA | ConvLoRA | ConvDoRA):
        return site
    if isinstance(delta, WeightLoRA):
        for suffix, theirs in ((".in_proj_weight", ""), (".out_proj.weight", _OUT_PROJ)):
            owner = site.removesuffix(suffix)
            if owner != site and isinstance(modules.get(owner), nn.MultiheadAttention):
                return owner + theirs
    return None


def _whole(delta: Delta | WeightDelta) -> _Factors:
    """Return one pair of factors for the whole map: parts side by side in a, block by block in b."""
    assert isinstance(delta, LinearLoRA | LinearDoRA | ConvLoRA | ConvDoRA | WeightLoRA)
    parts, first = len(delta.rows), delta.rows[0]
    magnitude = _magnitude(delta) if isinstance(delta, LinearDoRA | ConvDoRA) else None
    if first.stop - first.start == delta.outputs:
        return _Factors(delta.a, delta.b, delta.scale, magnitude)
    b = delta.b.new_zeros(delta.outputs, delta.a.shape[0])
    rank = delta.b.shape[1]
    for index, (rows, part) in enumerate(zip(delta.rows, delta.b.chunk(parts), strict=True)):
        b[rows, index * rank : (index + 1) * rank] = part.detach()
    return _Factors(delta.a, b, delta.scale, magnitude)


def _magnitude(delta: LinearDoRA | ConvDoRA) -> Tensor:
    """Return the lengths of the merged weight's rows [out]: those of the frozen rows, and the learnt change."""
    (base,) = delta.bases
    magnitude = _row_lengths(base.weight, delta.m.dtype)
    if not magnitude.all():
        raise PlanError("The peft library cannot do DoRA on a weight with a row of zeros. Save it with `save_adapter`.")
    for rows, growth in zip(delta.rows, delta.m.detach().chunk(len(delta.rows)), strict=True):
        magnitude[rows] += growth
    return magnitude


def _growth(module: nn.Module, magnitude: Tensor, name: str, source: Path) -> Tensor:
    """Return the library's magnitudes of a module less the lengths of its frozen rows [out]."""
    if not isinstance(module, nn.Linear | nn.Conv2d) or magnitude.numel() != module.weight.shape[0]:
        raise CheckpointError(
            f"`{source}` does not fit this model: `{name}` has {magnitude.numel()} magnitudes in the file, but is a "
            f"{type(module).__name__} of another size or kind in the model."
        )
    return magnitude.flatten() - _row_lengths(module.weight, magnitude.dtype).to(magnitude.device)


def _row_lengths(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the length of each row of a weight [out, ...], in `dtype`."""
    lengths: Tensor = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1, dtype=dtype)
    return lengths


def _complete_attention(factors: dict[str, _Factors], name: str, attention: nn.Module) -> None:
    """Give both projections of an attention factors of one rank, zeros where there were none, as the library needs."""
    assert isinstance(attention, nn.MultiheadAttention)
    width = attention.embed_dim
    like = next(factors[key].a for key in (name, name + _OUT_PROJ) if key in factors)
    empty = {
        name: _Factors(like.new_zeros(1, width), like.new_zeros(3 * width, 1), 1.0),
        name + _OUT_PROJ: _Factors(like.new_zeros(1, width), like.new_zeros(width, 1), 1.0),
    }
    pairs = {key: factors.get(key, zeros) for key, zeros in empty.items()}
    rank = max(pair.a.shape[0] for pair in pairs.values())
    for key, pair in pairs.items():
        missing = rank - pair.a.shape[0]
        a = nn.functional.pad(pair.a.detach(), (0, 0, 0, missing))
        scale = pair.scale / _OUT_PROJ_TIMES if key.endswith(_OUT_PROJ) else pair.scale
        factors[key] = _Factors(a, nn.functional.pad(pair.b.detach() * scale, (0, missing)), 1.0)


def _config(factors: Mapping[str, _Factors], full: list[str]) -> dict[str, Any]:
    """Return a configuration of the library for these factors."""
    sites = {name: pair for name, pair in factors.items() if not name.endswith(_OUT_PROJ)}
    ranks = {name: pair.a.shape[0] for name, pair in sites.items()}
    alphas = {name: pair.scale * ranks[name] for name, pair in sites.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(sites),
        "modules_to_save": full or None,
        "rank_pattern": {re.escape(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "use_dora": any(pair.magnitude is not None for pair in factors.values()),
        "inference_mode": True,
        "base_model_name_or_path": None,
        "task_type": None,
    }
