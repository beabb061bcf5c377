"""Roles and sites of a configuration's model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vispeft.config import Config
from vispeft.engine.estimation.base_model import base_without_weights
from vispeft.models.roles import roles_for
from vispeft.peft.norms import is_norm
from vispeft.peft.targets import NORMS, Names


@dataclass(frozen=True)
class RoleRow:
    """Role of a model, its pattern, and the number of sites that match the pattern."""

    name: str
    pattern: str
    num_sites: int


@dataclass(frozen=True)
class SiteRow:
    """One site: a module or a parameter. shape: of the parameter, or of the module's weight where it has one."""

    name: str
    kind: str
    shape: str
    params: int


def list_roles(config: Config) -> list[RoleRow]:
    """Return the roles of a configuration's model, and `norms`, which every model with norms has."""
    model = base_without_weights(config).model
    names, roles = Names(model), roles_for(model)
    rows = [RoleRow(name, pattern, len(names.sites(pattern))) for name, pattern in roles.items()]
    if NORMS not in roles and any(is_norm(module) for module in model.modules()):
        rows.append(RoleRow(NORMS, "found by type", len(names.sites(f"@{NORMS}"))))
    return rows


def list_sites(config: Config, pattern: str) -> list[SiteRow]:
    """Return the sites of a pattern in a configuration's model; no match is an error with the nearest names."""
    model = base_without_weights(config).model
    rows = []
    for site in Names(model).sites(pattern, roles_for(model)):
        if site.parameter is not None:
            parameter = site.module.get_parameter(site.parameter)
            rows.append(SiteRow(site.name, "parameter", _shape(parameter), parameter.numel()))
            continue
        weight = dict(site.module.named_parameters(recurse=False)).get("weight")
        params = sum(parameter.numel() for parameter in site.module.parameters())
        rows.append(SiteRow(site.name, type(site.module).__name__, "" if weight is None else _shape(weight), params))
    return rows


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape)
