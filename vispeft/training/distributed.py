"""Exchange of gradients between the processes of a run: what is exchanged in each step, and nothing beside it.

Training and the engine may import this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# larger exchanges are cut into buckets, so that the first travel while the last gradients are still computed
_LARGEST_BUCKET_MB = 25


@dataclass(frozen=True)
class GradientUse:
    """Trained parameters that a loss gives no gradient, which decides how processes wait for each other.

    lacking: in a batch with targets
    lacking_without_targets: in a batch without any
    """

    lacking: frozenset[str]
    lacking_without_targets: frozenset[str]

    @property
    def varies(self) -> bool:
        """True if the batch decides which parameters get a gradient."""
        return self.lacking != self.lacking_without_targets


class GradientExchange(DDPStrategy):
    """Fabric's DDP with the options that the trained parameters need, set before `Fabric.setup`.

    Without a `use`, every step searches the graph for parameters without a gradient, which is always right and costs
    time in each backward pass (https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html).
    Parameters that are few go into one bucket, and so into one message.

    use: of the module that is set up
    broadcasts_buffers: give every process the first one's buffers before each pass, for norms that update statistics
    """

    use: GradientUse | None = None
    broadcasts_buffers: bool = True

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Return the module in DDP."""
        return DistributedDataParallel(
            module,
            device_ids=self._determine_ddp_device_ids(),
            **ddp_options(module, self.use, self.broadcasts_buffers),
        )


def ddp_options(module: nn.Module, use: GradientUse | None, broadcasts_buffers: bool) -> dict[str, Any]:
    """Return the arguments of DistributedDataParallel for a module. use: None where it is not known"""
    trained_bytes = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return {
        "find_unused_parameters": use is None or use.varies,
        # the same parameters lack a gradient in every step: they are found once
        "static_graph": use is not None and not use.varies and bool(use.lacking),
        "broadcast_buffers": broadcasts_buffers,
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": min(_LARGEST_BUCKET_MB, max(1, math.ceil(trained_bytes / 2**20))),
    }


def gradient_use(
    module: nn.Module, losses_with_targets: Callable[[], Tensor], losses_without_targets: Callable[[], Tensor]
) -> GradientUse:
    """Run both losses forward and backward once and return which trained parameters they leave without a gradient.

    Gradients, buffers and random generators of the CPU and of the module's device stay as they were. Where processes
    run together, each must call this.

    module: in the mode of training; its parameters' names are those of the result
    losses_with_targets, losses_without_targets: return the loss of a batch, a scalar
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    devices = sorted({p.device for p in trained.values() if p.device.type == "cuda"}, key=str)
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    lacking = []
    with torch.random.fork_rng(devices=devices):
        for loss in (losses_with_targets, losses_without_targets):
            gradients = torch.autograd.grad(loss(), list(trained.values()), allow_unused=True)
            lacking.append(frozenset(n for n, gradient in zip(trained, gradients, strict=True) if gradient is None))
    with torch.no_grad():
        for buffer, before in buffers.items():
            buffer.copy_(before)
    return GradientUse(*lacking)
