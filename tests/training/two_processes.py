"""A run of the toy model, in one process or two: `two_processes.py RUN_DIR [NUM_COMPILED_BLOCKS]`.

A step takes four images in both cases.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ToyRun, toy_batch

from vispeft.structures import Batch
from vispeft.training import compilation
from vispeft.training.arguments import LoopSettings
from vispeft.training.devices import build_fabric

fabric = build_fabric("cpu", "fp32")


def share(start: int) -> Iterator[Batch]:
    """Return the batches of this process; those of all processes together are those of a single one."""
    world_size = fabric.world_size
    return (toy_batch(i * world_size + fabric.global_rank, 4 // world_size) for i in range(start, 100))


num_blocks = int(sys.argv[2]) if len(sys.argv) > 2 else 0
# without compiled code, but with the graphs of autograd that it has
compilation.BACKEND = "aot_eager"
settings = LoopSettings(steps=4, accumulate=2, eval_every=2, compiles=num_blocks > 0)
run = ToyRun(Path(sys.argv[1]), fabric, settings, noise=0.0, num_blocks=num_blocks, batches=share)
run.fit()
