"""Time of a training step, measured on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from vispeft import peft
from vispeft.engine.estimation.base_model import Base
from vispeft.engine.estimation.simulated_step import make_batch
from vispeft.engine.settings import criterion_of, fabric_of, optimizer_of
from vispeft.training.memory import keep_freed_memory
from vispeft.training.step import LossModule, SealedBatch

# a step with more operations is timed with fewer images: at 20 GFLOPs a second, 10 seconds
_MOST_FLOPS = 200e9
# a second step, which is faster than the first one, is timed if the first one took less
_LONG_STEP = 10.0


@dataclass(frozen=True)
class Timing:
    """Seconds of a step, of `batch_size` images, and of the whole measurement."""

    seconds: float
    batch_size: int
    measuring_seconds: float


def time_step(base: Base, step_flops: int) -> Timing:
    """Time one or two training steps of a base whose model has its deltas, and change its weights.

    step_flops: operations of a step at the configured batch size
    """
    began = time.monotonic()
    keep_freed_memory()
    train = base.config.train
    size = max(1, min(train.batch_size, int(_MOST_FLOPS * train.batch_size / step_flops)))
    # one process: several would each start this command again
    config = base.config.model_copy(update={"train": train.model_copy(update={"batch_size": size, "devices": 1})})
    fabric = fabric_of(config.train)
    step, optimizer = fabric.setup(
        LossModule(base.model, criterion_of(config, base.model)), optimizer_of(config.train, base.model)
    )
    peft.train_mode(base.model)
    batch = make_batch(config, base.model, base.num_objects).to(fabric.device)
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        fabric.backward(torch.stack(list(step(SealedBatch(batch)).values())).sum())
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        seconds = time.monotonic() - start
        if seconds > _LONG_STEP:
            break
    return Timing(seconds, size, time.monotonic() - began)
