"""A model of forty lines that keeps the contract is trained, scored, resumed and used like those of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft import peft
from vispeft.coco.rle import encode_region
from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.io.metrics_file import read_metrics
from vispeft.models import DetectionLimits, LossSettings, ModelArguments, ModelFamily, SegmentationModel
from vispeft.models.base import Criterion
from vispeft.models.registry import FAMILIES
from vispeft.models.split import Split, SplitPointError
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions, Targets
from vispeft.training.callbacks.base import Callback


class Toy(SegmentationModel):
    """Queries over the map of a small convolutional network."""

    encoder_name, num_queries, size_divisor = "conv", 50, 8
    pixel_mean = pixel_std = (127.5, 127.5, 127.5)
    num_classes = 0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.proj = nn.Conv2d(16, 16, 1)
        self.queries = nn.Embedding(self.num_queries, 16)
        self.class_head = nn.Linear(16, num_classes)

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        features = self.proj(self.stem(images).relu())
        queries = self.queries.weight.expand(len(images), -1, -1)
        boxes = torch.full((*queries.shape[:2], 4), 0.5, device=images.device)
        return Predictions((LayerPredictions(self.class_head(queries), boxes, queries),), features)

    def criterion(self, settings: LossSettings) -> Criterion:
        return toy_loss

    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        return [toy_instances(predictions, i, meta, limits) for i, meta in enumerate(metas)]

    def split(self, images: Tensor) -> Split:
        raise SplitPointError("a toy is never split")

    def roles(self) -> Mapping[str, str]:
        return {"heads": "class_head | queries", "encoder.proj": "proj"}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        self.load_state_dict(dict(tensors))

    def check_image_size(self, image_size: int) -> None:
        return None

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        return None


def toy_loss(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
    logits = torch.einsum("bqd,bdhw->bqhw", predictions.final.mask_embeddings, predictions.mask_features)
    union = torch.stack([target.masks.any(0).float() for target in targets])[:, None].expand(
        -1, logits.shape[1], -1, -1
    )
    mask = F.binary_cross_entropy_with_logits(logits, F.adaptive_avg_pool2d(union, logits.shape[-2:]))
    return {"mask": mask, "class": predictions.final.class_logits.square().mean()}


def toy_instances(predictions: Predictions, image: int, meta: ImageMeta, limits: DetectionLimits) -> Instances:
    num = min(limits.max_detections, predictions.final.class_logits.shape[1])
    logits = predictions.mask_logits(image, torch.arange(num))
    masks = F.interpolate(logits[None], (meta.height, meta.width))[0] > logits.median()
    rles = [encode_region(mask.numpy(), 0, 0, meta.height, meta.width) for mask in masks]
    boxes = torch.tensor([[0.0, 0.0, meta.width, meta.height]]).repeat(num, 1)
    return Instances(torch.linspace(0.9, 0.6, num), torch.arange(num) % 2, boxes, rles)


def build_toy(arguments: ModelArguments) -> Toy:
    return Toy(arguments.num_classes)


@pytest.fixture
def toy(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(FAMILIES, "toy", ModelFamily(build_toy, lambda _: None, ("base",)))
    plan = {"deltas": {"@encoder.proj": {"method": "lora", "rank": 2}}, "train": ["@heads"]}
    return {**tiny, "model": {"name": "toy", "weights": "none", "image_size": 64}, "peft": plan}


def test_toy_model__trains_evaluates_and_predicts(toy: dict[str, Any], shapes_set: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    result = train_run(parse_config(toy, ["train.steps=40", "train.log_every=1", "train.lr=0.01"]), directory)
    assert result.summary is not None
    losses = [line["loss"] for line in read_metrics(directory.metrics) if line["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert result.summary["model"] == "toy over conv (none)"
    assert result.summary["segm"] == evaluate_run(directory.root).segm
    image = next((shapes_set / "images").iterdir())
    report = predict_images(load_run(directory.root), [image], tmp_path / "out", device="cpu")
    assert report.num_instances == 50


def test_toy_model__resumes_to_the_bit(toy: dict[str, Any], tmp_path: Path) -> None:
    whole, halved = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "halved")
    train_run(parse_config(toy), whole)

    class StopError(Exception):
        pass

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        raise StopError

    with pytest.raises(StopError):
        train_run(parse_config(toy), halved, callbacks=[Callback(on_evaluation=stop)])
    train_run(parse_config(toy), halved, resume=True)
    assert halved.adapter.read_bytes() == whole.adapter.read_bytes()


def test_toy_model__takes_deltas_by_its_roles(toy: dict[str, Any]) -> None:
    model = Toy(2)
    peft.inject(model, peft.Plan({"@encoder.proj": peft.Adapter(width=4)}, train=["@heads"]), roles=model.roles())
    peft.check(model, torch.zeros(1, 3, 64, 64))
    assert peft.count(model).deltas.keys() == {"adapter"}
