"""The check of a model's roles against the model."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from vispeft.peft import Names

MAPS = re.compile(
    r".*\.(qkv|q|k|v|kv|qk|proj|fc1|fc2|conv\d|\w+_proj|\w+_qkv|linear\d|sampling_offsets|attention_weights)"
)


@pytest.fixture
def role_faults() -> Callable[..., list[str]]:
    """Return what is wrong with a model's roles: patterns of nothing, modules of another kind, modules never called."""
    return _faults


def _faults(
    model: nn.Module, roles: dict[str, str], run: Callable[[nn.Module], Any], *, needed: tuple[str, ...] = ()
) -> list[str]:
    """Return what is wrong with a model's roles: patterns of nothing, modules of another kind, modules never called."""
    called: set[int] = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: called.add(id(module)))
    run(model)
    names = Names(model)
    faults = [f"no {role}" for role in needed if role not in roles]
    for role in roles:
        for site in names.sites(f"@{role}", roles):
            is_map = isinstance(site.module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d))
            runs = any(id(inner) in called for inner in site.module.modules())
            if site.parameter is not None:
                # a parameter is a role only where its module is never called
                faults += [f"{role}: {site.name} is called"] if is_map and id(site.module) in called else []
            elif not runs:
                faults.append(f"{role}: {site.name} never runs")
            elif MAPS.fullmatch(f".{role}") and not is_map:
                faults.append(f"{role}: {site.name} is a {type(site.module).__name__}")
            elif MAPS.fullmatch(f".{role}") and id(site.module) not in called:
                faults.append(f"{role}: {site.name} is never called")
            elif (
                re.fullmatch(r"encoder\.conv\d", role)
                and getattr(site.module, "groups", 1) == site.module.in_channels > 1
            ):
                faults.append(f"{role}: {site.name} is depthwise")
    return faults
