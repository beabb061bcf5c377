"""LoRA and DoRA of ours, in the form of the peft library."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.inject import Attached, module_forms
from vispeft.peft.interop.peft_library.contents import TheirContents, no_counterpart
from vispeft.peft.interop.peft_library.lora_factors import (
    Convolution,
    Factors,
    check_conv,
    is_plain_embedding,
    row_lengths,
    summed,
    to_grouped,
    whole_rows,
)
from vispeft.peft.interop.peft_library.lora_reading import OUT_PROJ, OUT_PROJ_TIMES
from vispeft.peft.interop.peft_library.names import Tree
from vispeft.peft.methods.changed_start import StartedLoRA, WeightStartedLoRA, changed_factors
from vispeft.peft.methods.dora import ConvDoRA, LinearDoRA
from vispeft.peft.methods.lora import WeightLoRA
from vispeft.peft.methods.lora_other import EmbeddingLoRA
from vispeft.peft.methods.low_rank import ConvFactors, LinearFactors, LowRank, WeightFactors


def write_lora(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the LoRA or DoRA of a model."""
    terms: dict[str, list[Factors]] = {}
    for item in items:
        terms.setdefault(_their_site(item, tree), []).append(_factors(item, tree))
    for site, found in terms.items():
        if len(found) > 1 and any(term.magnitude is not None for term in found):
            raise no_counterpart(f"DoRA and another delta at one site, `{site}`")
    factors = {site: summed(found) for site, found in terms.items()}
    plain = [site for site, pair in factors.items() if pair.magnitude is None]
    if 0 < len(plain) < len(factors):
        raise PlanError(
            f"The peft library has DoRA at every site or at none, but here `{plain[0]}` has LoRA and others have DoRA. "
            f"Save it with `save_adapter`."
        )
    for owner in {site.removesuffix(OUT_PROJ) for site in factors}:
        if isinstance(tree.modules.get(owner), nn.MultiheadAttention):
            _complete_attention(factors, owner, tree.modules[owner])
    contents = TheirContents(_options(factors, items), bias="lora_only")
    for site, pair in factors.items():
        _add(contents, site, pair, tree)
    for owner, leaves in contents.parameters.items():
        # the library wraps them in the order in which the module registers them
        leaves.sort(key=module_forms(tree.modules[owner])[0][1].order.index)
    return contents


def _their_site(item: Attached, tree: Tree) -> str:
    """Return the library's name of a site: that of its module, or `<module>:<name>` of a parameter in a module."""
    if isinstance(tree.modules.get(item.site), nn.Linear | Convolution | nn.Embedding):
        return item.site
    owner, _, leaf = item.site.rpartition(".")
    parent = owner.removesuffix(".out_proj")
    if not isinstance(item.delta, WeightLoRA | WeightStartedLoRA) or not owner:
        raise no_counterpart(f"`{item.key}`")
    if isinstance(tree.modules[owner], nn.MultiheadAttention) and leaf == "in_proj_weight":
        return owner
    if parent != owner and isinstance(tree.modules[parent], nn.MultiheadAttention) and leaf == "weight":
        return parent + OUT_PROJ
    if leaf == "weight" and isinstance(tree.modules[owner], nn.Linear | Convolution | nn.Embedding):
        return owner
    if item.delta.a.ndim > 2:
        raise no_counterpart(f"`{item.key}`")
    return f"{owner}:{leaf}"


def _factors(item: Attached, tree: Tree) -> Factors:
    """Return one pair of factors for the whole map: parts side by side in a, block by block in b."""
    delta = item.delta
    assert isinstance(delta, LinearFactors | ConvFactors | WeightFactors | EmbeddingLoRA)
    owner = item.site if item.site in tree.modules else item.site.rpartition(".")[0]
    module = tree.modules[owner]
    magnitude = _magnitude(delta) if isinstance(delta, LinearDoRA | ConvDoRA) else None
    a, b = changed_factors(delta) if isinstance(delta, StartedLoRA) else (delta.a, delta.b)
    pair = Factors(a, b, delta.scale, magnitude)
    if not isinstance(delta, EmbeddingLoRA):
        pair = replace(pair, b=whole_rows(b, delta.rows, delta.outputs))
    if isinstance(module, Convolution):
        check_conv(item.site, module, has_magnitude=magnitude is not None)
        return to_grouped(pair, module)
    if isinstance(module, nn.Embedding) and not is_plain_embedding(module):
        raise no_counterpart(f"`{item.key}`, at an embedding that scales or cuts its rows")
    return pair


def _magnitude(delta: LinearDoRA | ConvDoRA) -> Tensor:
    """Return the lengths of the merged weight's rows [out]: those of the frozen rows, and the learnt change."""
    (base,) = delta.bases
    magnitude = row_lengths(base.weight)
    if not magnitude.all():
        raise PlanError("The peft library cannot do DoRA on a weight with a row of zeros. Save it with `save_adapter`.")
    for rows, growth in zip(delta.rows, delta.m.detach().chunk(len(delta.rows)), strict=True):
        magnitude[rows] += growth
    return magnitude


def _complete_attention(factors: dict[str, Factors], name: str, attention: nn.Module) -> None:
    """Give both projections of an attention factors of one rank, zeros where there were none, as the library needs."""
    assert isinstance(attention, nn.MultiheadAttention)
    width = attention.embed_dim
    like = next(factors[key].a for key in (name, name + OUT_PROJ) if key in factors)
    empty = {
        name: Factors(like.new_zeros(1, width), like.new_zeros(3 * width, 1), 1.0),
        name + OUT_PROJ: Factors(like.new_zeros(1, width), like.new_zeros(width, 1), 1.0),
    }
    pairs = {key: factors.get(key, zeros) for key, zeros in empty.items()}
    rank = max(pair.rank for pair in pairs.values())
    for key, pair in pairs.items():
        missing = rank - pair.rank
        a = nn.functional.pad(pair.a.detach(), (0, 0, 0, missing))
        scale = pair.scale / OUT_PROJ_TIMES if key.endswith(OUT_PROJ) else pair.scale
        factors[key] = Factors(a, nn.functional.pad(pair.b.detach() * scale, (0, missing)), 1.0)


def _add(contents: TheirContents, site: str, pair: Factors, tree: Tree) -> None:
    """Add the tensors of one site."""
    owner, _, leaf = site.partition(":")
    if leaf:
        contents.parameters.setdefault(owner, []).append(leaf)
        owner = site
    if isinstance(tree.modules.get(owner), nn.Embedding):
        contents.tensors[owner] = {"lora_embedding_A": pair.b.t(), "lora_embedding_B": pair.a.t()}
        return
    tensors = {"lora_A.weight": pair.a, "lora_B.weight": pair.b}
    if pair.magnitude is not None:
        ones = [1] * (pair.a.ndim - 2)
        tensors["lora_magnitude_vector"] = pair.magnitude.view(1, -1, *ones) if ones else pair.magnitude
    contents.tensors[owner] = tensors


def _options(factors: Mapping[str, Factors], items: Sequence[Attached]) -> dict[str, Any]:
    """Return the configuration of these factors, as JSON has it."""
    sites = {site.replace(":", "."): pair for site, pair in factors.items() if not site.endswith(OUT_PROJ)}
    ranks = {site: pair.rank for site, pair in sites.items()}
    alphas = {site: pair.scale * ranks[site] for site, pair in sites.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": common_dropout(items),
        "rank_pattern": {at_site(site): value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {at_site(site): value for site, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "use_dora": any(pair.magnitude is not None for pair in factors.values()),
    }


def common_dropout(items: Sequence[Attached]) -> float:
    """Return the dropout of all sites, 0 where they differ: the library has one for all."""
    dropouts = {item.delta.method.dropout for item in items if isinstance(item.delta.method, LowRank)}
    return dropouts.pop() if len(dropouts) == 1 else 0.0


def at_site(name: str) -> str:
    """Return the pattern that finds one site, and none whose name ends in this one."""
    return f"^{re.escape(name)}"
