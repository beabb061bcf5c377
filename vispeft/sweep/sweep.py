"""A sweep: a configuration, its search space, and the resulting runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vispeft.config import Config, config_path, parse_config
from vispeft.config.overrides import apply_overrides, parse_override
from vispeft.config.strict_yaml import read_yaml, write_yaml
from vispeft.errors import ConfigError
from vispeft.sweep.schema import SweepConfig, parse_sweep
from vispeft.sweep.space import Labels, Space, build_space, describe_point
from vispeft.sweep.storage import storage_url

SECTION = "sweep"
# keys that may change when a sweep is resumed: they affect its length, workers and storage, not its runs
_MAY_CHANGE = {"trials", "workers", "heartbeat", "storage"}


@dataclass(frozen=True)
class Run:
    """One trial: a point of the space with one seed. seed: None for `train.seed` of the configuration"""

    labels: Labels
    seed: int | None

    @property
    def title(self) -> str:
        """Title of the run, such as `adapters_x2, train.lr=0.001, seed 3`."""
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        return ", ".join([*([describe_point(self.labels)] if self.labels else []), *seed])


@dataclass(frozen=True)
class Sweep:
    """A sweep with checked configurations.

    base: configuration from file and command line, without the section `sweep`
    settings: the section `sweep`, with its name filled in
    """

    base: Mapping[str, Any]
    settings: SweepConfig

    @cached_property
    def space(self) -> Space:
        """Search space of the sweep."""
        return build_space(self.settings)

    @property
    def name(self) -> str:
        assert self.settings.name is not None
        return self.settings.name

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Seeds of every configuration; None for `train.seed` of the configuration."""
        return self.settings.seeds or (None,)

    @cached_property
    def grid(self) -> tuple[Run, ...]:
        """Every run of a grid in order; the seed changes fastest."""
        return tuple(Run(labels, seed) for labels in self.space.grid() for seed in self.seeds)

    @property
    def samples(self) -> Sequence[Run]:
        """Every run of a grid; for other samplers, runs that cover all values and both ends of all ranges."""
        if self.settings.sampler == "grid":
            return self.grid
        return [Run(labels, self.seeds[0]) for labels in self.space.corners()]

    @property
    def num_runs(self) -> int:
        """Number of runs in the whole sweep."""
        if self.settings.sampler == "grid":
            return len(self.grid)
        return (self.settings.trials or 0) * len(self.seeds)

    @property
    def identity(self) -> str:
        """Digest of 10 hexadecimal digits, equal for sweeps that can resume each other."""
        content = {"base": self.base, SECTION: _fixed_settings(self.settings)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def study_name(self) -> str:
        """Name of the study in the storage: the same on every machine that runs the same sweep."""
        return f"{self.name}-{self.identity}"

    def overrides_of(self, run: Run) -> list[str]:
        """Return the overrides that turn the base into the configuration of a run."""
        return [*self.space.overrides_of(run.labels), *([] if run.seed is None else [f"train.seed={run.seed}"])]

    def config(self, run: Run) -> Config:
        """Return the configuration of a run; an error names the run."""
        try:
            config = parse_config(self.base, self.overrides_of(run))
        except ConfigError as error:
            raise ConfigError(f"The sweep cannot run {run.title}: {error}") from error
        if config.train.devices > 1:
            raise ConfigError(
                f"`train.devices` must be 1 in a sweep, but is {config.train.devices}. "
                "To use several GPUs, set sweep.workers: each worker runs trials on one GPU."
            )
        return config

    def dump(self) -> str:
        """Return YAML that `load_sweep` reads back to the same sweep."""
        return write_yaml({**self.base, SECTION: self.settings.model_dump(mode="json", exclude_defaults=True)})

    def differences(self, other: Sweep) -> list[str]:
        """Return the keys for which `other` is another sweep or belongs to another study."""
        own, theirs = (
            {**self.base, SECTION: _fixed_settings(self.settings)},
            {**other.base, SECTION: _fixed_settings(other.settings)},
        )
        moved = ["sweep.storage"] if self.settings.storage != other.settings.storage else []
        return sorted([*_different(own, theirs, ""), *moved])


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Return the sweep of a YAML file, or of a recipe by its name, with `key=value` overrides. Every run is checked."""
    found = config_path(path)
    raw = apply_overrides(read_yaml(found), [parse_override(word) for word in overrides])
    section = raw.pop(SECTION, None)
    try:
        if section is None:
            raise ConfigError(
                "there must be a section `sweep` with `space` or `variants`. `vispeft train` trains one configuration."
            )
        settings = parse_sweep(section)
        parse_config(raw)
        name = settings.name or path.stem
        sweep = Sweep(raw, settings.model_copy(update={"name": name}))
        _check(sweep)
    except ConfigError as error:
        raise ConfigError(f"`{found}`: {error}") from error
    return sweep


def _check(sweep: Sweep) -> None:
    """Check the configuration of every sample of the space."""
    if sweep.settings.seeds is not None and "train.seed" in sweep.settings.space:
        raise ConfigError("`sweep.seeds` and `sweep.space.train.seed` must not both be set. Keep `sweep.seeds`.")
    if sweep.settings.storage is not None:
        storage_url(sweep.settings.storage)
    for run in sweep.samples:
        sweep.config(run)


def _fixed_settings(settings: SweepConfig) -> dict[str, Any]:
    """Return the settings that must not change when a sweep is resumed."""
    dumped = settings.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in dumped.items() if key not in _MAY_CHANGE}


def _different(first: Any, second: Any, prefix: str) -> list[str]:
    """Return the dotted keys of the values that differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return [] if first == second else [prefix]
    found = []
    for key in first.keys() | second.keys():
        found += _different(first.get(key), second.get(key), f"{prefix}.{key}" if prefix else key)
    return found
