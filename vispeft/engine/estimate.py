"""Cost of a configuration, and the sites of its patterns, before training. No weights are fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vispeft import peft
from vispeft.config import Config
from vispeft.data import read_coco
from vispeft.engine.build import attach, build_base, complete, describe_base
from vispeft.engine.loaders import image_size
from vispeft.engine.settings import criterion_of
from vispeft.io.run_layout import ADAPTER_FILE
from vispeft.models import SegmentationModel
from vispeft.models.roles import roles_for
from vispeft.peft.targets import Names
from vispeft.structures import Targets
from vispeft.training.step import in_float32

# of COCO, for a configuration without data
DEFAULT_NUM_CLASSES = 80
# AdamW: a gradient and two moments of each trained value
_OPTIMIZER_COPIES = 3


@dataclass(frozen=True)
class Estimate:
    """Parameters, bytes and floating-point operations.

    trainable_by_method: parameters by method name; `full` for those that are trained in full
    activation_bytes: kept for the backward pass of `batch_size` images with a few instances each, in fp32, or in
        bf16 with frozen weights in bf16
    forward_flops: of one image at inference, a multiplication and an addition counted as two
    """

    model: str
    num_classes: int
    image_size: int
    batch_size: int
    trainable_by_method: Mapping[str, int]
    total_params: int
    adapter_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    forward_flops: int

    @property
    def trainable_params(self) -> int:
        return sum(self.trainable_by_method.values())

    @property
    def step_bytes(self) -> int:
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes


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


def estimate(config: Config) -> Estimate:
    """Estimate the cost of training this configuration from one forward pass on the CPU."""
    num_classes, num_images = _data_size(config)
    config = complete(config, num_images)
    model = build_base(config, num_classes, with_weights=False)
    attach(model, config)
    # the data that would choose are not read here; the budget is the same
    peft.choose_by_magnitude(model)
    counted = peft.count(model)
    full = {"full": counted.full} if counted.full else {}
    return Estimate(
        model=describe_base(model, config.model),
        num_classes=num_classes,
        image_size=image_size(config),
        batch_size=config.train.batch_size,
        trainable_by_method={**counted.deltas, **full},
        total_params=counted.total,
        adapter_bytes=_adapter_bytes(model),
        weight_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        optimizer_bytes=sum(_OPTIMIZER_COPIES * p.nbytes for p in model.parameters() if p.requires_grad),
        activation_bytes=config.train.batch_size * _activation_bytes(config, model),
        forward_flops=_forward_flops(config, model),
    )


def list_roles(config: Config) -> list[RoleRow]:
    """Return the roles of a configuration's model."""
    model = _model_without_weights(config)
    names = Names(model)
    return [RoleRow(name, pattern, len(names.sites(pattern))) for name, pattern in roles_for(model).items()]


def list_sites(config: Config, pattern: str) -> list[SiteRow]:
    """Return the sites of a pattern in a configuration's model; no match is an error with the nearest names."""
    model = _model_without_weights(config)
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


def _model_without_weights(config: Config) -> SegmentationModel:
    """Return the model of a configuration with random weights."""
    num_classes, num_images = _data_size(config)
    return build_base(complete(config, num_images), num_classes, with_weights=False)


def _data_size(config: Config) -> tuple[int, int]:
    """Return the numbers of classes and images of the training set; COCO's number and 1 image without data."""
    path = config.data.train.annotations
    if path is None:
        return DEFAULT_NUM_CLASSES, 1
    coco_set = read_coco(path, None)
    return len(coco_set.categories), len(coco_set)


def _adapter_bytes(model: nn.Module) -> int:
    """Return the size of the adapter file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ADAPTER_FILE
        peft.save_adapter(model, path)
        return path.stat().st_size


def _activation_bytes(config: Config, model: SegmentationModel) -> int:
    """Return the bytes that autograd keeps for the backward pass of one image with a few instances."""
    side = image_size(config)
    images = _images(model, side)
    height, width = images.shape[-2:]
    masks = torch.zeros(4, height, width, dtype=torch.bool)
    masks[:, : height // 2, : width // 2] = True
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(4, 1)
    targets = [Targets(torch.zeros(4, dtype=torch.int64), boxes, masks)]
    peft.train_mode(model)
    with _saved_bytes(model) as saved:
        with _arithmetic(config):
            predictions = model(images, targets)
        losses = criterion_of(config, model)(in_float32(predictions), targets)
        torch.stack(list(losses.values())).sum()
    return sum(saved.values())


def _arithmetic(config: Config) -> torch.autocast:
    """Return the context in which the model runs: frozen weights in bf16 take no other input."""
    return torch.autocast("cpu", torch.bfloat16, enabled=config.model.frozen_precision == "bf16")


@contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Yield the bytes of each storage that autograd saves in the `with` block, except the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own and pointer not in saved:
            saved[pointer] = tensor.untyped_storage().nbytes()
            # the address of a freed storage could be reused
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@torch.no_grad()
def _forward_flops(config: Config, model: SegmentationModel) -> int:
    """Return the floating-point operations of one image at inference."""
    model.eval()
    with FlopCounterMode(display=False) as counter, _arithmetic(config):
        model(_images(model, image_size(config)))
    return int(counter.get_total_flops())


def _images(model: SegmentationModel, side: int) -> Tensor:
    """Return one empty image, padded as the model needs: [1, 3, S, S]."""
    padded = -(-side // model.size_divisor) * model.size_divisor
    return torch.zeros(1, 3, padded, padded)


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape)
