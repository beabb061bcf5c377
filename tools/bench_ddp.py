"""Measure what two processes exchange in a training step, and what the step costs, on the CPU (gloo).

    python tools/bench_ddp.py [--steps 12] [--json tools/results/ddp_cpu.json]

The bundled Mask DINO takes steps on synthetic scenes of 128 px: trained in full, and with the plans of the recipes
`bundled_lora.yaml` and `bundled_adapter.yaml`. Each is run with the options that vispeft sets for it
(`vispeft.training.distributed.ddp_options`) and with a search for unused parameters and a broadcast of all buffers in
every step, torch's way for a model that nothing is known of. Bytes are those of the gradient buckets and the broadcast
buffers, by process and step; times are medians of processor time of the first process, options taking turns.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from pretrain_base_batches import normalise, to_targets
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vispeft import peft
from vispeft.config import load_config
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base
from vispeft.models import LossSettings
from vispeft.structures import Batch, Targets
from vispeft.synthetic import Scene, render_scene
from vispeft.training.distributed import ddp_options, gradient_use
from vispeft.training.processor import cpu_info
from vispeft.training.step import LossModule, SealedBatch

RECIPES = {"full": "bundled_full", "LoRA": "bundled_lora", "adapters": "bundled_adapter"}
SIZE, BATCH = 128, 2
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    """Run two processes, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        mp.spawn(_process, args=(args.steps, out), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
        rows = json.loads(out.read_text())
    for row in rows:
        print(
            f"{row['trained']:9s} {row['options']:8s} {row['buckets']:3d} buckets "
            f"{row['gradient_bytes']:12,d} B gradients, {row['buffer_bytes']:9,d} B buffers, "
            f"{row['step_cpu_s']:.3f} s a step ({row['ratio']:.2f} of search)"
        )
    if args.json:
        machine = cpu_info("model name") or "unknown CPU"
        document = {"machine": f"{machine}, two processes of one thread", "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def _process(rank: int, steps: int, out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    batches = [_batch(np.random.default_rng((rank, step))) for step in range(4)]
    rows = [row for trained, recipe in RECIPES.items() for row in _measure(trained, recipe, batches, steps)]
    if rank == 0:
        out.write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _measure(trained: str, recipe: str, batches: list[Batch], steps: int) -> list[dict[str, Any]]:
    """Return a row for each set of options, both on models of the same weights."""
    cases: dict[str, tuple[DistributedDataParallel, torch.optim.AdamW, list[int], list[float]]] = {}
    first = batches[0]
    empty = Batch(first.images, tuple(_none_of(each) for each in first.targets), ())
    for options in ("search", "vispeft"):
        module = _module(recipe)
        use = gradient_use(module, partial(_loss, module, first), partial(_loss, module, empty))
        wanted = ddp_options(module, use, False) if options == "vispeft" else {"find_unused_parameters": True}
        wrapped = DistributedDataParallel(module, **wanted)
        sent: list[int] = []
        wrapped.register_comm_hook(sent, _counting)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5)
        cases[options] = (wrapped, optimizer, sent, [])
    for step in range(steps):
        for wrapped, optimizer, sent, times in cases.values():
            sent.clear()
            began = time.process_time()
            _loss(wrapped, batches[step % len(batches)]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.process_time() - began)
    medians = {options: statistics.median(times[2:]) for options, (*_, times) in cases.items()}
    return [
        {
            "trained": trained,
            "options": options,
            "buckets": len(sent),
            "gradient_bytes": sum(sent),
            "buffer_bytes": sum(b.nbytes for b in wrapped.module.buffers()) if wrapped.broadcast_buffers else 0,
            "step_cpu_s": medians[options],
            "ratio": medians[options] / medians["search"],
        }
        for options, (wrapped, _, sent, _) in cases.items()
    ]


def _module(recipe: str) -> LossModule:
    config = load_config(CONFIGS / f"{recipe}.yaml", [f"model.image_size={SIZE}"])
    model = build_base(config, 1)
    attach(model, config)
    peft.train_mode(model)
    return LossModule(model, model.criterion(LossSettings()))


def _loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    return torch.stack(list(module(SealedBatch(batch)).values())).sum()


def _counting(
    sent: list[int],
    bucket: distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    buffer = bucket.buffer()
    sent.append(buffer.nbytes)
    work = distributed.all_reduce(buffer.div_(2), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _batch(rng: np.random.Generator) -> Batch:
    scenes: list[Scene] = []
    while len(scenes) < BATCH:
        scene = render_scene(rng, SIZE)
        if 0 < len(scene.labels) <= 40:
            scenes.append(scene)
    model = build_base(load_config(CONFIGS / "bundled_head.yaml"), 1)
    images = normalise([scene.image for scene in scenes], model)
    return Batch(images, tuple(to_targets(scene.labels * 0, scene.masks) for scene in scenes), ())


def _none_of(targets: Targets) -> Targets:
    return Targets(targets.labels[:0], targets.boxes[:0], targets.masks[:0])


if __name__ == "__main__":
    main()
