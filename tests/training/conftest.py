"""A model, a criterion and batches small enough that a run takes milliseconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vispeft.structures import Batch, ImageMeta, LayerPredictions, Predictions, Targets
from vispeft.training.arguments import FitResult, LoopSettings, Outputs, Task
from vispeft.training.callbacks.base import Callback
from vispeft.training.devices import build_fabric
from vispeft.training.logs import RunLog
from vispeft.training.optim import OptimSettings, build_optimizer
from vispeft.training.schedule import Schedule
from vispeft.training.seeds import seed_everything
from vispeft.training.state import Checkpoint
from vispeft.training.trainer import fit

NUM_CLASSES = 2


@pytest.fixture
def files_of_at_most() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Return a context `files_of_at_most(n)` in which no file grows beyond n bytes, as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


class ToyBlock(nn.Module):
    """A residual block, of the kind that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).relu()


class ToyModel(nn.Module):
    """A frozen convolution and norm with trained blocks and heads. With targets it draws noise, as denoising does."""

    def __init__(self, noise: float = 0.0, num_blocks: int = 0) -> None:
        super().__init__()
        self.noise = noise
        self.body = nn.Conv2d(3, 8, 4, stride=4)
        self.body_norm = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm(8)
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(num_blocks))
        self.class_embed = nn.Linear(8, NUM_CLASSES)
        self.bbox_embed = nn.Linear(8, 4)
        self.mask_embed = nn.Linear(8, 8)
        self.body.requires_grad_(False)
        self.body_norm.requires_grad_(False)

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        features = self.body_norm(self.body(images))  # [B, 8, h, w]
        queries = self.norm(features.flatten(2)[..., :5].transpose(1, 2))  # [B, 5, 8]
        if targets is not None:
            queries = queries + self.noise * torch.randn_like(queries)
        for block in self.blocks:
            queries = block(queries)
        layer = LayerPredictions(
            self.class_embed(queries), self.bbox_embed(queries).sigmoid(), self.mask_embed(queries)
        )
        return Predictions((layer,), features)


def toy_criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """Return losses that are means over images, so that accumulated batches equal a large one."""
    final = predictions.final
    mean_boxes = torch.stack([target.boxes.mean(0) for target in targets])[:, None]  # [B, 1, 4]
    return {
        "class": final.class_logits.square().mean(),
        "box": 5 * (final.boxes - mean_boxes).abs().mean(),
        "mask": final.mask_embeddings.sub(1).square().mean(),
    }


def toy_batch(draw: int, size: int = 2) -> Batch:
    """Return batch number `draw`, always the same."""
    return join([toy_image(draw * size + i) for i in range(size)])


def toy_image(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    targets = Targets(
        torch.randint(NUM_CLASSES, (2,), generator=generator),
        torch.rand(2, 4, generator=generator),
        torch.rand(2, 16, 16, generator=generator) > 0.5,
    )
    meta = ImageMeta(number + 1, f"image_{number:03d}.jpg", 16, 16, 16, 16)
    return Batch(torch.randn(1, 3, 16, 16, generator=generator), (targets,), (meta,))


def join(batches: Sequence[Batch]) -> Batch:
    return Batch(
        torch.cat([batch.images for batch in batches]),
        tuple(target for batch in batches for target in batch.targets),
        tuple(meta for batch in batches for meta in batch.metas),
    )


def toy_batches(start: int = 0, size: int = 2) -> Iterator[Batch]:
    draw = start
    while True:
        yield toy_batch(draw, size)
        draw += 1


@dataclass
class ToyRun:
    """A run in its directory, with everything that a test may change.

    score: returns the metrics of an evaluation, given the model and the number of earlier evaluations
    evaluates: False: without evaluation
    kept: step and class head of each adapter that was kept
    """

    run_dir: Path
    fabric: Fabric
    settings: LoopSettings = field(default_factory=lambda: LoopSettings(steps=6, eval_every=2, log_every=2))
    noise: float = 0.1
    num_blocks: int = 0
    lr: float = 0.05
    batches: Callable[[int], Iterator[Batch]] = toy_batches
    criterion: Callable[[Predictions, Sequence[Targets]], dict[str, Tensor]] = toy_criterion
    score: Callable[[nn.Module, int], Mapping[str, float]] | None = None
    evaluates: bool = True
    keep_best: Callable[[int, Mapping[str, float]], None] | None = None
    callbacks: Sequence[Callback] = ()
    model: ToyModel = field(init=False)
    kept: list[tuple[int, Tensor]] = field(default_factory=list)
    num_evaluations: int = 0

    @property
    def checkpoint_path(self) -> Path:
        return self.run_dir / "checkpoints" / "last.pt"

    def make_model(self) -> ToyModel:
        return ToyModel(self.noise, self.num_blocks)

    def fit(self, resume: Checkpoint | None = None, model: ToyModel | None = None) -> FitResult:
        seed_everything(3)
        self.model = self.make_model() if model is None else model
        optimizer = build_optimizer(self.model, OptimSettings(lr=self.lr))
        start = 0 if resume is None else resume.counters.step
        schedule = Schedule(self.settings.steps, warmup=min(2, self.settings.steps))
        log = RunLog(self.run_dir, start_step=start, use_tensorboard=False, is_enabled=self.fabric.is_global_zero)
        with log:
            return fit(
                Task(self.model, self.criterion, optimizer, schedule),
                self.batches(start * self.settings.accumulate),
                self.settings,
                Outputs(log, self.checkpoint_path, self.keep_best or self._keep_best),
                fabric=self.fabric,
                evaluate=self._evaluate if self.evaluates else None,
                resume=resume,
                callbacks=self.callbacks,
            )

    def _evaluate(self) -> Mapping[str, float]:
        # an evaluation that draws must not change the training that follows
        torch.rand(7)
        self.num_evaluations += 1
        if self.score is not None:
            return self.score(self.model, self.num_evaluations - 1)
        return {"segm/AP": float(self.model.class_embed.weight.detach().sum())}

    def _keep_best(self, step: int, metrics: Mapping[str, float]) -> None:
        self.kept.append((step, self.model.class_embed.weight.detach().clone()))


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return build_fabric("cpu", "fp32")


@pytest.fixture
def make_run(tmp_path: Path, fabric: Fabric) -> Callable[..., ToyRun]:
    """Return a factory of runs in directories of their own: `make_run("a", noise=0)`."""
    return lambda name="run", **options: ToyRun(tmp_path / name, **{"fabric": fabric, **options})


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    return toy_batch
