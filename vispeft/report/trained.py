"""Trained parameters of a run, by region and site, read from its adapter file."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from vispeft import peft
from vispeft.io.tensors import read_shapes
from vispeft.peft.methods.base import Method

_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")


@dataclass(frozen=True)
class Region:
    """A part of the model. num_params: trained parameters in it; share: their share of all trained ones, 0..1"""

    name: str
    num_params: int
    share: float


@dataclass(frozen=True)
class TrainedSites:
    """Sites of one pattern with the same method. pattern: name of the sites with `*` for block numbers"""

    pattern: str
    how: str
    num_sites: int
    num_params: int


@dataclass(frozen=True)
class Trained:
    """All trained parameters: by region, largest first, and by pattern in the order of the model."""

    regions: tuple[Region, ...]
    sites: tuple[TrainedSites, ...]

    @property
    def num_params(self) -> int:
        return sum(region.num_params for region in self.regions)


def read_trained(adapter_path: Path) -> Trained | None:
    """Return the trained parameters in an adapter file, or None if it does not exist."""
    if not adapter_path.is_file():
        return None
    plan = peft.describe(adapter_path).plan
    sizes = {key: math.prod(shape) for key, shape in read_shapes(adapter_path).items()}
    params: Counter[tuple[str, str]] = Counter()
    sites: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    regions: Counter[str] = Counter()
    in_full = {name: sizes.pop(name, 0) for name in plan.train}
    deltas = {site: given if isinstance(given, Sequence) else (given,) for site, given in plan.deltas.items()}
    # inner sites first: their names may begin like a delta of an outer site
    owned = {site: _delta_sizes(site, deltas[site], sizes) for site in sorted(deltas, key=len, reverse=True)}
    for site, methods in deltas.items():
        for method, own in zip(methods, owned[site], strict=True):
            place = (_NUMBER.sub("*", site), describe_method(method))
            params[place] += own
            sites[place].add(site)
            regions[region_of(site)] += own
    for name, own in in_full.items():
        owner = name.rpartition(".")[0]
        place = (_NUMBER.sub("*", owner), "trained in full")
        params[place] += own
        sites[place].add(owner)
        regions[region_of(name)] += own
    total = sum(regions.values()) or 1
    return Trained(
        tuple(Region(name, number, number / total) for name, number in regions.most_common()),
        tuple(TrainedSites(*place, len(sites[place]), number) for place, number in params.items()),
    )


def region_of(name: str) -> str:
    """Return the display name of the part of a model to which a module or parameter belongs."""
    first, _, rest = name.partition(".")
    if first == "decoder" and rest.split(".")[0].endswith("_embed"):
        return "heads"
    if name.startswith("backbone.pyramid"):
        return "feature pyramid"
    return first.replace("_", " ")


def describe_method(method: Method) -> str:
    """Return a method with the values that are not defaults, such as `lora, rank 8`."""
    words = [
        f"{field.name} {value}"
        for field in fields(method)
        if (value := getattr(method, field.name)) != field.default or field.default is MISSING
    ]
    return ", ".join([method.name, *words])


def _delta_sizes(site: str, methods: Sequence[Method], sizes: dict[str, int]) -> list[int]:
    """Return the number of values of each delta at a site and remove them from `sizes`.

    The tensors of a second LoRA are `lora_2.*`.
    """
    # the part of a tensor's name after its site, such as `lora_2.a`
    names = "|".join(sorted({method.name for method in methods}))
    delta = re.compile(rf"(?P<name>{names})(?:_(?P<number>\d+))?\.")
    found: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for key in [key for key in sizes if key.startswith(f"{site}.")]:
        matched = delta.match(key, len(site) + 1)
        if matched is not None:
            found[matched["name"]][int(matched["number"] or 1)] += sizes.pop(key)
    own = {name: iter([size for _, size in sorted(numbered.items())]) for name, numbered in found.items()}
    return [next(own.get(method.name, iter(())), 0) for method in methods]
