"""AdamW with learning rates and weight decay per method and per region of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vispeft.errors import TrainingError
from vispeft.peft.methods.base import Delta, WeightDelta
from vispeft.peft.targets import Names, Roles

FULL = "full"
# tokens, position embeddings and attention biases: weight decay would pull them to zero, as it would biases
_NO_DECAY_NAMES = frozenset(
    {
        *("pos_embed", "cls_token", "reg_token", "mask_token", "level_embed", "query_embed"),
        # of Swin, Swin V2, MViTv2 and SAM, LeViT and TinyViT, XCiT: excluded by their authors and by timm
        *("relative_position_bias_table", "cpb_mlp", "logit_scale", "rel_pos", "rel_pos_h", "rel_pos_w"),
        *("attention_biases", "attention_bias_cache", "temperature"),
    }
)


@dataclass(frozen=True)
class Rates:
    """Learning rate and weight decay of some parameters; None: those of the surrounding settings.

    lr_scale: factor on the learning rate of the surrounding settings
    start: fraction of the run at which these parameters begin to learn: training the heads before the rest distorts
        the pretrained features less (LP-FT, Kumar et al. 2022, https://arxiv.org/abs/2202.10054)
    """

    lr: float | None = None
    weight_decay: float | None = None
    lr_scale: float = 1.0
    start: float = 0.0

    def over(self, lr: float, weight_decay: float) -> tuple[float, float]:
        """Return learning rate and weight decay, given those of the surrounding settings."""
        return (
            self.lr_scale * (lr if self.lr is None else self.lr),
            weight_decay if self.weight_decay is None else self.weight_decay,
        )


@dataclass(frozen=True)
class OptimSettings:
    """AdamW's settings.

    methods: rates by method name (`lora`, `adapter`, ...), and under `full` for parameters trained in full
    regions: rates by site pattern, which override those by method; of several patterns that name a parameter, the last
        counts
    lora_plus_ratio: factor on the learning rate of B in low-rank updates, over that of A (LoRA+, Hayou et al. 2024,
        https://arxiv.org/abs/2402.12354)
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    methods: Mapping[str, Rates] = field(default_factory=dict)
    regions: Mapping[str, Rates] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lora_plus_ratio: float = 1.0

    def rates(self, method: str, region: str = "") -> tuple[float, float]:
        """Return learning rate and weight decay of a method's parameters within a region (empty: outside of all)."""
        rates = self.methods.get(method, Rates()).over(self.lr, self.weight_decay)
        return self.regions[region].over(*rates) if region else rates


@dataclass(frozen=True)
class _Group:
    """Parameters that share their rates: those of one method in one region, with weight decay or without.

    has_ratio: True for those whose rate `lora_plus_ratio` multiplies
    """

    method: str
    region: str
    has_decay: bool
    has_ratio: bool

    @property
    def name(self) -> str:
        region = f" in {self.region}" if self.region else ""
        ratio = "/lora_plus" if self.has_ratio else ""
        return f"{self.method}{region}{ratio}{'' if self.has_decay else '/no_decay'}"


def build_optimizer(model: nn.Module, settings: OptimSettings, roles: Roles | None = None) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of `model`, in the groups of `param_groups`.

    Raises TrainingError where nothing is trainable, PlanError where a region's pattern names nothing in the model.
    """
    groups = param_groups(model, settings, roles)
    if not groups:
        raise TrainingError("The model must have trainable parameters, but all are frozen.")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def param_groups(model: nn.Module, settings: OptimSettings, roles: Roles | None = None) -> list[dict[str, Any]]:
    """Return optimizer groups with `name`, `params`, `lr`, `initial_lr`, `weight_decay` and `start`, in model order.

    A name is `<method>` or `<method> in <pattern of the region>`, with `/lora_plus` at its end for parameters whose
    rate the ratio of LoRA+ multiplies, and `/no_decay` for those without weight decay. Parameters that belong to no
    delta are trained in full, the method `full`.

    roles: pattern of each `@role` that the regions' patterns may name
    """
    no_decay, method_of, region_of = _without_decay(model), _delta_methods(model), _regions(model, settings, roles)
    with_ratio = _with_ratio(model, settings)
    members: dict[_Group, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            method, region = method_of.get(name, FULL), region_of.get(name, "")
            group = _Group(method, region, name not in no_decay, name in with_ratio)
            members.setdefault(group, []).append(parameter)
    groups = []
    for group, params in members.items():
        lr, weight_decay = settings.rates(group.method, group.region)
        lr = settings.lora_plus_ratio * lr if group.has_ratio else lr
        groups.append(
            {
                "name": group.name,
                "params": params,
                "lr": lr,
                "initial_lr": lr,
                "weight_decay": weight_decay if group.has_decay else 0.0,
                "start": settings.regions[group.region].start if group.region else 0.0,
            }
        )
    return groups


def _regions(model: nn.Module, settings: OptimSettings, roles: Roles | None) -> dict[str, str]:
    """Return the region's pattern by the name of each parameter in it."""
    if not settings.regions:
        return {}
    names = Names(model)
    return {name: pattern for pattern in settings.regions for name in names.trained(pattern, roles)}


def _delta_methods(model: nn.Module) -> dict[str, str]:
    """Return the method's name by the name of each parameter that belongs to a delta."""
    return {
        f"{module_name}.{name}": module.method.name
        for module_name, module in model.named_modules()
        if isinstance(module, Delta | WeightDelta)
        for name, _ in module.named_parameters()
    }


def _with_ratio(model: nn.Module, settings: OptimSettings) -> set[str]:
    """Return the names of the parameters whose rate `lora_plus_ratio` multiplies; none for a ratio of 1."""
    if settings.lora_plus_ratio == 1:
        return set()
    found = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, Delta | WeightDelta)
        for name in module.method.lora_plus_tensors
    }
    if not found:
        raise TrainingError(
            f"`lora_plus_ratio` is {settings.lora_plus_ratio}, but no delta has a B that starts at zero, as `lora` and "
            "`dora` have. Add one of these methods, or leave the ratio out."
        )
    return found


def _without_decay(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay: one-dimensional, norms, embeddings and tokens."""
    names = set()
    for module_name, module in model.named_modules():
        has_no_decay = isinstance(module, (nn.LayerNorm, nn.Embedding))
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}" if module_name else name
            if has_no_decay or parameter.ndim <= 1 or not _NO_DECAY_NAMES.isdisjoint(full_name.split(".")):
                names.add(full_name)
    return names
