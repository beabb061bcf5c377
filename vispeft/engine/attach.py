"""Plan of a configuration, and its deltas attached to a model."""

from __future__ import annotations

from torch import nn

from vispeft import peft
from vispeft.config import Config, PeftConfig, RegionRates, methods_from
from vispeft.errors import ConfigError, PlanError
from vispeft.models.roles import roles_for

# for the class head where its rows are new, see docs/results.md
CLASS_HEAD_LR_SCALE = 10.0
CLASS_HEAD_RATES = {"@class_head": RegionRates(lr_scale=CLASS_HEAD_LR_SCALE)}


def build_plan(config: PeftConfig) -> peft.Plan:
    """Return the plan, in the form that `inject` takes."""
    deltas = {pattern: methods_from(value, f"peft.deltas.{pattern}") for pattern, value in config.deltas.items()}
    if not deltas and not config.train:
        raise ConfigError(
            "`peft.deltas` or `peft.train` must name something to train, but both are empty. "
            "Full fine-tuning is peft.train=['**']."
        )
    return peft.Plan(deltas, train=config.train)


def attach(model: nn.Module, config: Config) -> None:
    """Freeze the base, attach the deltas and thaw what is trained in full, in place.

    Raises ConfigError if a pattern of `train.regions` names nothing in the model, or frozen parameters alone.
    """
    roles = roles_for(model)
    peft.inject(model, build_plan(config.peft), roles=roles)
    names = peft.Names(model)
    for pattern, rates in (config.train.regions or {}).items():
        try:
            found = names.trained(pattern, roles)
        except PlanError as error:
            raise ConfigError(f"`train.regions`: {error}") from error
        is_default = {pattern: rates} == CLASS_HEAD_RATES
        if not is_default and not any(model.get_parameter(name).requires_grad for name in found):
            raise ConfigError(
                f"`train.regions`: `{pattern}` names {len(found)} parameters, all of them frozen, so that its rates "
                "have no effect. Name it in `peft.deltas` or `peft.train`, or leave the region out."
            )
