"""Cost of training a configuration: parameters, memory, operations and file size."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vispeft import peft
from vispeft.config import Config
from vispeft.engine.attach import attach
from vispeft.engine.build import describe_base
from vispeft.engine.estimation.base_model import Base, base_without_weights
from vispeft.engine.estimation.simulated_step import StepCost, forward_flops, simulate_step
from vispeft.engine.loaders import image_size
from vispeft.io.run_layout import ADAPTER_FILE
from vispeft.models.roles import roles_for
from vispeft.peft.inject import attached
from vispeft.peft.targets import Names
from vispeft.training.devices import trains_on_cpu
from vispeft.training.optim import FULL

HEADS = "heads"
# AdamW: two moments of each trained value
_MOMENTS = 2
# Python, torch and its libraries, and a share for gaps in the heap: fitted to tools/results/plan_cpu.json
_PROCESS_BYTES = 850 * 2**20
_HEAP_FACTOR = 1.25
_BLOCK = re.compile(r"^(.*?(?:blocks|layers|stages|layer)[._]?\d+(?:\.\d+|\.blocks\.\d+)?)(?=\.|$)")


@dataclass(frozen=True)
class Region:
    """Part of the model: its heads, or a module or parameter at its top. trained: parameters by method"""

    name: str
    total: int
    trained: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """Parameters, bytes and floating-point operations of training.

    trainable_by_method: parameters by method name; `full` for those that are trained in full
    activation_bytes: tensors kept from the forward pass of a batch for its backward pass, with the batch
    peak_bytes: maximum of all tensors in a training step: weights, optimizer state, activations, gradients, temporaries
    process_bytes: resident memory of the process on a CPU, less exact; `peak_bytes` on a GPU
    forward_flops: of one image at inference, a multiplication and an addition counted as two
    step_forward_flops, step_backward_flops: of a training step with `batch_size` images; recomputation is backward
    first_block: first block, or module outside of blocks, whose output needs a gradient
    """

    model: str
    num_classes: int
    image_size: int
    batch_size: int
    num_objects: int
    regions: tuple[Region, ...]
    trainable_by_method: Mapping[str, int]
    total_params: int
    adapter_bytes: int
    weight_bytes: int
    frozen_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int
    activation_bytes: int
    peak_bytes: int
    process_bytes: int
    forward_flops: int
    step_forward_flops: int
    step_backward_flops: int
    first_block: str

    @property
    def trainable_params(self) -> int:
        """Parameters that training changes."""
        return sum(self.trainable_by_method.values())

    @property
    def trainable_percent(self) -> float:
        """Share of the parameters that training changes."""
        return 100 * self.trainable_params / self.total_params

    @property
    def step_flops(self) -> int:
        """Floating-point operations of a training step."""
        return self.step_forward_flops + self.step_backward_flops

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the sums over them, for a JSON file."""
        return {
            **asdict(self),
            "trainable_params": self.trainable_params,
            "trainable_percent": self.trainable_percent,
            "step_flops": self.step_flops,
        }


def estimate(config: Config) -> Estimate:
    """Estimate the cost of training a configuration, from a step on tensors without data."""
    base = base_without_weights(config)
    attach(base.model, base.config)
    # the data that would choose are not read here; the budget is the same
    peft.choose_by_magnitude(base.model)
    return estimate_attached(base)


def estimate_attached(base: Base) -> Estimate:
    """Estimate the cost of training a base whose model has its deltas."""
    config, model = base.config, base.model
    counted = peft.count(model)
    full = {FULL: counted.full} if counted.full else {}
    trained_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    average_bytes = 0 if config.train.ema is None else trained_bytes
    static_bytes = weight_bytes + _MOMENTS * trained_bytes + average_bytes
    step = simulate_step(config, model, base.num_objects)
    peak = static_bytes + _most_bytes(step, model, trained_bytes)
    return Estimate(
        model=describe_base(model, config.model),
        num_classes=base.num_classes,
        image_size=image_size(config),
        batch_size=config.train.batch_size,
        num_objects=base.num_objects,
        regions=regions_of(model),
        trainable_by_method={**counted.deltas, **full},
        total_params=counted.total,
        adapter_bytes=_adapter_bytes(model),
        weight_bytes=weight_bytes,
        frozen_bytes=weight_bytes - trained_bytes,
        gradient_bytes=trained_bytes,
        optimizer_bytes=_MOMENTS * trained_bytes,
        average_bytes=average_bytes,
        activation_bytes=step.kept_bytes,
        peak_bytes=peak,
        process_bytes=_process_bytes(peak) if trains_on_cpu(config.train.device) else peak,
        forward_flops=forward_flops(config, model),
        step_forward_flops=step.forward_flops,
        step_backward_flops=step.backward_flops,
        first_block=_block_of(step.first_module, model),
    )


def _most_bytes(step: StepCost, model: nn.Module, trained_bytes: int) -> int:
    """Return the maximum of gradients, activations and temporaries: of the passes, or of the optimizer's update."""
    largest = max((p.nbytes for p in model.parameters() if p.requires_grad), default=0)
    return max(step.most_bytes, trained_bytes + 2 * largest)


def _process_bytes(peak: int) -> int:
    """Return the resident memory of a process on a CPU with so many bytes of tensors at the peak."""
    return _PROCESS_BYTES + int(_HEAP_FACTOR * peak)


def regions_of(model: nn.Module) -> tuple[Region, ...]:
    """Return the parameters of the heads and of the modules and parameters at the top, by method."""
    methods = {id(p): item.delta.method.name for item in attached(model) for p in item.delta.parameters()}
    heads = _heads(model)
    totals: Counter[str] = Counter()
    trained: dict[str, Counter[str]] = {}
    for name, parameter in model.named_parameters():
        region = HEADS if f"{name}.".startswith(heads) else name.split(".")[0]
        totals[region] += parameter.numel()
        if parameter.requires_grad:
            by_method = trained.setdefault(region, Counter())
            by_method[methods.get(id(parameter), FULL)] += parameter.numel()
    return tuple(Region(name, total, dict(trained.get(name, {}))) for name, total in totals.items())


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the heads, with a dot at the end."""
    roles = roles_for(model)
    sites = Names(model).sites(f"@{HEADS}", roles) if HEADS in roles else []
    return tuple(f"{site.name}." for site in sites)


def _block_of(name: str, model: nn.Module) -> str:
    """Return the block of a module by name; outside of blocks, the site of a delta or the module itself."""
    if match := _BLOCK.match(name):
        return match[1]
    sites = [item.site for item in attached(model) if f"{name}.".startswith(f"{item.site}.")]
    return max(sites, key=len) if sites else name


def _adapter_bytes(model: nn.Module) -> int:
    """Return the size of the adapter file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ADAPTER_FILE
        peft.save_adapter(model, path)
        return path.stat().st_size
