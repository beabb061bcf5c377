"""The `sweep` section of a sweep file, validated as strictly as the rest of the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from vispeft.config.messages import known_keys, sentences
from vispeft.config.schema import Section
from vispeft.config.strict_yaml import describe
from vispeft.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Objective = Literal[
    "segm/AP",
    "segm/AP50",
    "segm/AP75",
    "bbox/AP",
    "trainable_params",
    "adapter_bytes",
    "train_seconds",
    "peak_memory_bytes",
]
DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "segm/AP": "maximize",
    "segm/AP50": "maximize",
    "segm/AP75": "maximize",
    "bbox/AP": "maximize",
    "trainable_params": "minimize",
    "adapter_bytes": "minimize",
    "train_seconds": "minimize",
    "peak_memory_bytes": "minimize",
}


class SpaceEntry(Section):
    """Values of one configuration key: those in `values`, or numbers from `low` to `high`.

    when: condition for this key: values of other keys of the space, or of `variant`
    """

    values: tuple[Any, ...] | None = None
    low: Any = None
    high: Any = None
    log: bool = False
    step: Any = None
    when: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _one_form(self) -> SpaceEntry:
        if (self.values is None) == (self.low is None and self.high is None):
            raise ConfigError("must be a list of values, {values: [...]}, or a range {low: ..., high: ...}")
        if self.values is not None:
            self._check_values(self.values)
        else:
            self._check_range()
        return self

    def _check_values(self, values: tuple[Any, ...]) -> None:
        if self.log or self.step is not None:
            raise ConfigError("must not have `log` or `step` with a list of values, only with a range")
        labels = [json.dumps(value, sort_keys=True) for value in values]
        if not values or len(set(labels)) < len(labels):
            raise ConfigError("must have at least one value and no duplicates")

    def _check_range(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if (value is not None or name != "step") and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise ConfigError(f"must have a number as `{name}`, but it is {describe(value)}")
        if self.low >= self.high:
            raise ConfigError(f"must have `low` below `high`, but they are {self.low} and {self.high}")
        if self.step is not None and (self.step <= 0 or self.log):
            raise ConfigError("must have a `step` above 0, and none together with `log`")
        if self.step is not None and self.is_whole and not isinstance(self.step, int):
            raise ConfigError(f"must have a whole number as `step`, but it is {self.step}. Or write low: {self.low}.0")
        if self.log and self.low <= 0:
            raise ConfigError(f"must have `low` above 0 for `log`, but it is {self.low}")

    @property
    def is_whole(self) -> bool:
        """Return True for a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class SweepConfig(Section):
    """Settings of a sweep: the search space, the sampling of its points, and the storage of the study."""

    name: str | None = Field(None, description="Name of directory and study. Default: the name of the file.")
    space: dict[str, SpaceEntry] = Field({}, description="Configuration key to a list of values or a range.")
    variants: dict[str, dict[str, Any]] = Field({}, description="Name to overrides that are chosen together.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="Seeds with which each configuration is trained. Default: `train.seed` alone."
    )
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: Count | None = Field(None, description="Number of configurations for `random` and `tpe`.")
    objectives: tuple[Objective, ...] = Field(
        ("segm/AP",), description="Metrics and costs to optimise; several give a Pareto front."
    )
    pruner: Literal["none", "median", "asha"] = Field("none", description="Stop trials of low mask AP at evaluations.")
    storage: str | None = Field(None, description="`sqlite:///FILE` or `postgresql://...`. Default: OUT/study.db.")
    workers: Count = Field(1, description="Processes on this machine; GPUs are assigned in turn.")
    heartbeat: Count = Field(
        15, description="Seconds between heartbeats; a worker on another machine counts as dead after four missed ones."
    )
    sampler_seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of `random` and `tpe`.")

    @field_validator("space", mode="before")
    @classmethod
    def _lists_are_values(cls, space: Any) -> Any:
        """Expand a bare list, which is short for `{values: [...]}`."""
        if not isinstance(space, dict):
            return space
        for key, entry in space.items():
            if not isinstance(entry, dict | list):
                raise ConfigError(
                    f"`sweep.space.{key}` must be a list of values or a range {{low: ..., high: ...}}, but is "
                    f"{describe(entry)}. Write a key that does not vary outside of `sweep`."
                )
        return {
            key: _checked_entry(key, {"values": entry} if isinstance(entry, list) else entry)
            for key, entry in space.items()
        }

    @model_validator(mode="after")
    def _fits_together(self) -> SweepConfig:
        if not self.space and not self.variants:
            raise ConfigError("`sweep.space` or `sweep.variants` must not be empty: there is nothing to vary.")
        if self.sampler == "grid" and self.trials is not None:
            raise ConfigError(
                "`sweep.trials` must be left out for a grid, because the number of its points is fixed. "
                "Or use sweep.sampler=random."
            )
        if self.sampler != "grid" and self.trials is None:
            raise ConfigError(f"`sweep.trials` must be set with `sweep.sampler: {self.sampler}`.")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ConfigError("`sweep.seeds` must have at least one seed and no duplicates.")
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ConfigError("`sweep.objectives` must have at least one entry and no duplicates.")
        if self.pruner != "none" and len(self.objectives) > 1:
            raise ConfigError(
                "`sweep.pruner` must be none with several objectives: a trial of low AP may be the cheapest."
            )
        return self


def parse_sweep(raw: Any) -> SweepConfig:
    """Return the validated section."""
    if not isinstance(raw, dict):
        raise ConfigError(
            f"`sweep` must be a section with `space` or `variants`, but is {describe(raw)}. "
            "`vispeft train` trains a single configuration."
        )
    filled = {key: value for key, value in raw.items() if value is not None}
    try:
        return SweepConfig.model_validate_json(json.dumps(filled))
    except ValidationError as error:
        known = [f"sweep.{key}" for key in known_keys(SweepConfig)]
        raise ConfigError("\n".join(sentences(error, known=known, prefix="sweep"))) from error


def _checked_entry(key: str, entry: dict[str, Any]) -> SpaceEntry:
    """Return one validated entry of the space; errors name its key."""
    try:
        return SpaceEntry.model_validate_json(json.dumps(entry))
    except ValidationError as error:
        prefix = f"sweep.space.{key}"
        known = [f"{prefix}.{name}" for name in SpaceEntry.model_fields]
        raise ConfigError("\n".join(sentences(error, known=known, prefix=prefix))) from error
    except ConfigError as error:
        raise ConfigError(f"`sweep.space.{key}` {error}.") from error
