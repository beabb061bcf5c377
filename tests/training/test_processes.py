"""Equal results of two processes and of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from vispeft.io.metrics_file import read_metrics
from vispeft.structures import Batch
from vispeft.training.arguments import LoopSettings
from vispeft.training.checkpoint import load_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("num_blocks", [0, 2], ids=["plain", "compiled blocks"])
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_fit__two_processes_equal_one(
    tmp_path: Path, make_run: Callable[..., Any], batch_of: Callable[..., Batch], fabric: Fabric, num_blocks: int
) -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(
        [*command, str(tmp_path / "two"), str(num_blocks)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]

    settings = LoopSettings(steps=4, accumulate=2, eval_every=2)
    one = make_run("one", settings=settings, noise=0.0, num_blocks=num_blocks)
    one.batches = lambda start: (batch_of(draw, 4) for draw in range(start, 100))
    one.fit()
    two, single = load_checkpoint(tmp_path / "two" / "checkpoints" / "last.pt"), load_checkpoint(one.checkpoint_path)
    assert len(two.rng) == 2
    for name, tensor in single.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, rtol=1e-4, atol=1e-6)
    # only the first process writes
    assert [line["step"] for line in read_metrics(tmp_path / "two" / "metrics.jsonl")] == [2, 4, 4]
