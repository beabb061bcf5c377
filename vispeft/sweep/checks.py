"""Checks before the first trial: weights files exist, models can be built, every pattern matches sites."""

from __future__ import annotations

from vispeft.config import Config
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base, check_weights_files, complete
from vispeft.errors import ConfigError, VispeftError
from vispeft.sweep.sweep import Run, Sweep

# each plan costs the construction of a model; a wrong pattern usually fails in one of the first plans
_MOST_PLANS = 100


def check_plans(sweep: Sweep) -> int:
    """Attach each plan of the sweep to its model, without weights. Return the number of plans."""
    plans: dict[str, tuple[Run, Config]] = {}
    for run in sweep.samples:
        config = sweep.config(run)
        _check_task(config)
        patterns = sorted(config.train.regions or {})
        plans.setdefault(f"{config.model.model_dump_json()}{config.peft.model_dump_json()}{patterns}", (run, config))
    for run, config in list(plans.values())[:_MOST_PLANS]:
        try:
            check_weights_files(config.model)
            model = build_base(complete(config, num_images=1), num_classes=1, with_weights=False)
            attach(model, config)
        except VispeftError as error:
            raise ConfigError(f"The sweep cannot run {run.title}: {error}") from error
    return len(plans)


def _check_task(config: Config) -> None:
    """Refuse tasks that are not ranked by mask AP, as trials, pruners and pages of a sweep are."""
    if config.task != "instance":
        raise ConfigError(f"`task` must be instance in a sweep, which ranks runs by mask AP, but is {config.task}.")
