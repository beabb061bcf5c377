"""Search space of a sweep: its points, and the configuration overrides of each point."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from vispeft.config.overrides import parse_override
from vispeft.errors import ConfigError
from vispeft.sweep.schema import SpaceEntry, SweepConfig

VARIANT = "variant"
# a point: names of dimensions to labels
Labels = Mapping[str, Any]
Chooser = Callable[["Dimension"], Any]


@dataclass(frozen=True)
class Dimension:
    """One dimension of the space. A label is a plain value, or the JSON text of a list or mapping.

    labels: labels of all values; empty for a range
    overrides: `key=value` overrides of each label; empty for a range
    entry: the range, or None
    when: labels of earlier dimensions for which this one is active
    """

    name: str
    labels: tuple[Any, ...]
    overrides: tuple[tuple[str, ...], ...]
    entry: SpaceEntry | None
    when: Mapping[str, tuple[Any, ...]]

    def is_active(self, labels: Labels) -> bool:
        """Return True if this dimension is active for the labels chosen so far."""
        return all(name in labels and _in(labels[name], allowed) for name, allowed in self.when.items())

    def overrides_of(self, label: Any) -> tuple[str, ...]:
        """Return the overrides of a label."""
        if self.entry is not None:
            return (_override(self.name, label),)
        index = next(i for i, known in enumerate(self.labels) if _in(label, (known,)))
        return self.overrides[index]


@dataclass(frozen=True)
class Space:
    """All dimensions, in the order in which they are chosen and applied: the variant first."""

    dimensions: tuple[Dimension, ...]

    def choose(self, chooser: Chooser) -> dict[str, Any]:
        """Return a point: `chooser` gives the label of each active dimension."""
        labels: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.is_active(labels):
                labels[dimension.name] = chooser(dimension)
        return labels

    def overrides_of(self, labels: Labels) -> list[str]:
        """Return the `key=value` overrides of a point, in the order in which they are applied."""
        return [word for d in self.dimensions if d.name in labels for word in d.overrides_of(labels[d.name])]

    def grid(self) -> list[dict[str, Any]]:
        """Return every point; the last dimension changes fastest."""
        return list(self._grid({}, self.dimensions))

    def corners(self) -> list[dict[str, Any]]:
        """Return points that together contain every value of every dimension, and both ends of every range."""
        points: list[dict[str, Any]] = []
        for dimension in self.dimensions:
            for label in _ends(dimension):
                wanted = {dimension.name: label}
                for above in reversed(self.dimensions):
                    needed = [d for d in self.dimensions if d.name in wanted and above.name in d.when]
                    if needed and above.name not in wanted:
                        wanted[above.name] = needed[0].when[above.name][0]
                points.append(self.choose(partial(_wanted_or_first, wanted)))
        return points

    def _grid(self, labels: dict[str, Any], left: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
        if not left:
            yield labels
        elif not left[0].is_active(labels):
            yield from self._grid(labels, left[1:])
        else:
            for label in _grid_labels(left[0]):
                yield from self._grid({**labels, left[0].name: label}, left[1:])


def build_space(config: SweepConfig) -> Space:
    """Return the space that a sweep section describes."""
    dimensions: list[Dimension] = []
    if config.variants:
        words = tuple(_variant_overrides(name, values) for name, values in config.variants.items())
        dimensions.append(Dimension(VARIANT, tuple(config.variants), words, None, {}))
    for key, entry in config.space.items():
        when = {above: _allowed(key, above, value, dimensions) for above, value in entry.when.items()}
        _check_key(key)
        if entry.values is None:
            dimensions.append(Dimension(key, (), (), entry, when))
        else:
            words = tuple((_override(key, value),) for value in entry.values)
            dimensions.append(Dimension(key, tuple(_label(value) for value in entry.values), words, None, when))
    return Space(tuple(dimensions))


def describe_point(labels: Labels) -> str:
    """Return the title of a point, such as `adapters_x2, train.lr=0.001`."""
    shown = [str(label) if name == VARIANT else f"{name}={label}" for name, label in labels.items()]
    return ", ".join(shown)


def _label(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _variant_overrides(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    for key in values:
        _check_key(key, f"sweep.variants.{name}.")
    return tuple(_override(key, value) for key, value in values.items())


def _check_key(key: str, prefix: str = "sweep.space.") -> None:
    try:
        path = parse_override(f"{key}=0").path
    except ConfigError as error:
        raise ConfigError(
            f"`{prefix}{key}` must be a dotted configuration key. Put a part that contains dots in quotes, "
            "such as 'peft.deltas.\"@encoder.qkv\".rank'."
        ) from error
    if path[0] == "sweep":
        raise ConfigError(f"`{prefix}{key}` must be a key of the configuration outside of `sweep`.")


def _allowed(key: str, above: str, value: Any, dimensions: Sequence[Dimension]) -> tuple[Any, ...]:
    """Return the labels of an earlier dimension that a condition allows."""
    known = {dimension.name: dimension for dimension in dimensions}
    if above not in known:
        known_names = ", ".join(f"`{name}`" for name in known) or "there is none"
        raise ConfigError(f"`sweep.space.{key}.when.{above}` must name a varied key above `{key}`: {known_names}.")
    labels = tuple(_label(one) for one in (value if isinstance(value, list) else [value]))
    for label in labels:
        if not _in(label, known[above].labels) and known[above].entry is None:
            allowed = ", ".join(str(one) for one in known[above].labels)
            raise ConfigError(f"`sweep.space.{key}.when.{above}` must be one of {allowed}, but is {label}.")
    if not labels:
        raise ConfigError(f"`sweep.space.{key}.when.{above}` must have at least one value.")
    return labels


def _in(label: Any, labels: Sequence[Any]) -> bool:
    """Return True if `label` is among `labels`. true and 1 are different labels, 1 and 1.0 are equal."""
    return any(label == other and isinstance(label, bool) == isinstance(other, bool) for other in labels)


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    return dimension.labels if dimension.entry is None else (dimension.entry.low, dimension.entry.high)


def _wanted_or_first(wanted: Labels, dimension: Dimension) -> Any:
    return wanted.get(dimension.name, _ends(dimension)[0])


def _grid_labels(dimension: Dimension) -> tuple[Any, ...]:
    entry = dimension.entry
    if entry is None:
        return dimension.labels
    if entry.log or (entry.step is None and not entry.is_whole):
        raise ConfigError(
            f"`sweep.space.{dimension.name}` must be a list of values, or a range with `step`, in a grid. "
            "Or use sweep.sampler=tpe or random."
        )
    if entry.is_whole:
        return tuple(range(entry.low, entry.high + 1, entry.step or 1))
    low, step = Decimal(str(entry.low)), Decimal(str(entry.step))
    count = int((Decimal(str(entry.high)) - low) / step) + 1
    return tuple(float(low + index * step) for index in range(count))
