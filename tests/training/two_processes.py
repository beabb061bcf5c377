"""A run of the toy model, for one process or several: `two_processes.py RUN_DIR`. Four images a step either way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ToyRun, toy_batch

from vispeft.structures import Batch
from vispeft.training.arguments import LoopSettings
from vispeft.training.devices import build_fabric

fabric = build_fabric("cpu", "fp32")


def share(start: int) -> Iterator[Batch]:
    """This process's batches: together the processes see what one alone would."""
    world_size = fabric.world_size
    return (toy_batch(i * world_size + fabric.global_rank, 4 // world_size) for i in range(start, 100))


run = ToyRun(Path(sys.argv[1]), fabric, LoopSettings(steps=4, accumulate=2, eval_every=2), noise=0.0, batches=share)
run.fit()
