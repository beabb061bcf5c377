"""One training step on tensors without data: its memory, its operations, and the first module with a gradient.

Torch's fake tensors have a shape, a dtype and a device, but no values. Forward pass, losses and backward pass run as in
training, with the CPU's operators, so that activation checkpointing and recomputed inputs count as they are. Queries
are matched to targets in order, because costs without values have no cheapest assignment.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_iter

from vispeft import peft
from vispeft.config import Config
from vispeft.engine.estimation.flop_meter import FlopMeter
from vispeft.engine.estimation.storage_meter import StorageMeter
from vispeft.engine.loaders import image_size
from vispeft.engine.settings import criterion_of
from vispeft.errors import ConfigError
from vispeft.losses import HungarianMatcher, Match
from vispeft.models import SegmentationModel
from vispeft.structures import Batch, Targets
from vispeft.training.step import LossModule, SealedBatch


@dataclass(frozen=True)
class StepCost:
    """Cost of one forward and backward pass of a batch.

    kept_bytes: tensors that exist between forward and backward pass, with the batch
    most_bytes: maximum of all tensors except the model's own, gradients included
    first_module: first module whose output needs a gradient, by name; empty where none does
    """

    kept_bytes: int
    most_bytes: int
    forward_flops: int
    backward_flops: int
    first_module: str


def simulate_step(config: Config, model: SegmentationModel, num_objects: int) -> StepCost:
    """Return the cost of a training step of a model with its deltas. The model is unchanged.

    num_objects: objects of each image
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _without_data(model, mode)
    peft.train_mode(fake, update_statistics=config.train.update_statistics)
    criterion = criterion_of(config, fake)
    for module in criterion.modules() if isinstance(criterion, nn.Module) else ():
        if isinstance(module, HungarianMatcher):
            module.assign = _in_order
    is_mixed = config.train.precision in ("bf16", "fp16") or has_bf16_weights(config)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=is_mixed)
    meter = StorageMeter((*fake.parameters(), *fake.buffers()))
    with mode, meter, FlopMeter() as counter, _first_with_gradient(fake) as first, _without_library_caches():
        batch = SealedBatch(make_batch(config, fake, num_objects))
        with precision:
            losses = _losses(LossModule(fake, criterion), batch)
        loss = torch.stack(list(losses.values())).sum()
        del losses
        kept, forward = meter.now, counter.total
        loss.backward()  # type: ignore[no-untyped-call]
        total = counter.total
    return StepCost(kept, meter.most, forward, total - forward, first[0] if first else "")


def _losses(module: LossModule, batch: SealedBatch) -> dict[str, Tensor]:
    """Return the losses; ConfigError for a model whose training decides by the values of tensors."""
    try:
        losses: dict[str, Tensor] = module(batch)
    except (DataDependentOutputException, RuntimeError) as error:
        # Hungarian matching of other libraries goes through numpy
        if not isinstance(error, DataDependentOutputException) and ".numpy()" not in str(error):
            raise
        raise ConfigError(
            f"A training step of {type(module.model).__name__} cannot be simulated: its code decides by the values of "
            "tensors, and the simulation has none. Train for a few steps instead: summary.json has the time and the "
            "memory."
        ) from error
    return losses


@torch.no_grad()
def forward_flops(config: Config, model: SegmentationModel) -> int:
    """Return the floating-point operations of one image at inference, a multiplication and an addition as two."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _without_data(model, mode).eval()
    precision = torch.autocast("cpu", torch.bfloat16, enabled=has_bf16_weights(config))
    with mode, FlopMeter() as counter, precision, _without_library_caches():
        fake(torch.zeros(1, model.num_channels, *[_padded(model, image_size(config))] * 2))
    return int(counter.total)


@contextmanager
def _without_library_caches() -> Iterator[None]:
    """Context in which transformers keeps no tensors by their shapes, as it does for position embeddings.

    A simulated one would be given to a real model later. The library's own switch is what it asks under torch.compile.
    """
    library = sys.modules.get("transformers.pytorch_utils")
    if library is None:
        yield
        return
    name = "is_torchdynamo_compiling"
    asked = getattr(library, name)
    setattr(library, name, lambda: True)
    try:
        yield
    finally:
        setattr(library, name, asked)


def has_bf16_weights(config: Config) -> bool:
    """Return True for frozen weights in bf16, which take no input in float32."""
    return config.model.frozen_precision == "bf16"


def make_batch(config: Config, model: SegmentationModel, num_objects: int) -> Batch:
    """Return a batch of empty images with objects that fill a quarter of them."""
    side = _padded(model, image_size(config))
    masks = torch.zeros(num_objects, side, side, dtype=torch.bool)
    masks[:, : side // 2, : side // 2] = True
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(num_objects, 1)
    targets = Targets(torch.zeros(num_objects, dtype=torch.int64), boxes, masks)
    size = config.train.batch_size
    return Batch(torch.zeros(size, model.num_channels, side, side), (targets,) * size, ())


def _padded(model: SegmentationModel, side: int) -> int:
    return -(-side // model.size_divisor) * model.size_divisor


def _without_data(model: SegmentationModel, mode: FakeTensorMode) -> SegmentationModel:
    """Return a copy of the model with tensors without data."""
    memo: dict[int, Any] = {id(each): mode.from_tensor(each) for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _in_order(costs: Tensor) -> tuple[Match, ...]:
    """Return pairs of the first queries and the targets for each layer. costs: [L, Q, T]"""
    num_layers, num_queries, num_targets = costs.shape
    pairs = torch.arange(min(num_queries, num_targets))
    return tuple(Match(pairs, pairs) for _ in range(num_layers))


@contextmanager
def _first_with_gradient(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that gets the name of the first module whose output needs a gradient."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def note(module: nn.Module, args: Sequence[Any], output: Any) -> None:
        outputs = (each for each in tree_iter(output) if isinstance(each, Tensor))
        if not found and module in names and any(each.requires_grad for each in outputs):
            found.append(names[module])

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()
