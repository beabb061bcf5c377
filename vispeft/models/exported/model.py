"""An exported graph as a segmentation model that predicts and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from vispeft.errors import ConfigError
from vispeft.models.base import Criterion, DetectionLimits, LossSettings, SegmentationModel
from vispeft.models.exported.description import OUTPUTS
from vispeft.models.exported.files import read_graph
from vispeft.models.postprocess import best_instances, boxes_in_pixels, check_metas
from vispeft.models.split import Split
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions, Targets


class ExportedModel(SegmentationModel):
    """Segmentation model from a file of `vispeft export`. It has no parameters: the graph holds the weights.

    Predictions and instances are those of the exported model within rounding. What trains or changes a model raises
    ConfigError.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.graph, self.description = read_graph(path)

    @property
    def encoder_name(self) -> str:
        """Return the description of the exported model, which names its encoder."""
        return self.description.model

    @property
    def num_classes(self) -> int:
        """Return the number of classes K."""
        return len(self.description.class_names)

    @property
    def num_queries(self) -> int:
        """Return the number of queries Q."""
        return self.description.num_queries

    @property
    def size_divisor(self) -> int:
        """Return the number of which H and W must be multiples; the one possible side for a graph of fixed size."""
        return self.description.padded_size if self.description.has_fixed_size else self.description.size_divisor

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel, RGB, in 0..255."""
        return self.description.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, RGB, in 0..255."""
        return self.description.pixel_std

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """Return the predictions of the final layer for images [B, 3, H, W]; `targets` are not used."""
        side = self.description.padded_size
        if self.description.has_fixed_size and tuple(images.shape[-2:]) != (side, side):
            raise ConfigError(
                f"`{self.path}` was exported for images of {side}x{side} pixels, but the input has "
                f"{images.shape[-2]}x{images.shape[-1]}. Use its `image_size`, {self.description.image_size}, or export "
                "with --dynamic-size."
            )
        outputs = self.graph(images)
        boxes = outputs[1] if len(outputs) == len(OUTPUTS) else None
        return Predictions((LayerPredictions(outputs[0], boxes, outputs[-2]),), outputs[-1])

    @torch.no_grad()
    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first, as the exported model does."""
        check_metas(predictions, metas)
        final = predictions.final
        logits = final.class_logits.float()
        is_sigmoid = self.description.class_scores == "sigmoid"
        probs = (logits.sigmoid() if is_sigmoid else logits.softmax(-1)[..., :-1]).nan_to_num(0.0)  # [B, Q, K]
        found = []
        for i, meta in enumerate(metas):
            boxes_xyxy = None
            if final.boxes is not None:
                boxes = final.boxes[i].float()
                probs[i] *= boxes.isfinite().all(dim=-1, keepdim=True)
                boxes_xyxy = boxes_in_pixels(boxes, meta, padded_size)
            found.append(
                best_instances(
                    predictions, i, probs[i], meta, padded_size=padded_size, limits=limits, boxes_xyxy=boxes_xyxy
                )
            )
        return found

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError for a size other than the exported one, where that is fixed."""
        if self.description.has_fixed_size and image_size != self.description.image_size:
            raise ConfigError(
                f"`image_size` must be {self.description.image_size}, for which `{self.path}` was exported, but is "
                f"{image_size}. Export with --dynamic-size."
            )

    def roles(self) -> Mapping[str, str]:
        """Return no roles: a graph has no modules."""
        return {}

    def criterion(self, settings: LossSettings) -> Criterion:
        """Raise ConfigError: a graph is not trained."""
        self._refuse()

    def split(self, images: Tensor) -> Split:
        """Raise ConfigError: a graph is not trained."""
        self._refuse()

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Raise ConfigError: the weights of a graph are fixed."""
        self._refuse()

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Raise ConfigError: a graph is not trained."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"`{self.path}` is an exported model, which only predicts. Use the run that it came from.")
