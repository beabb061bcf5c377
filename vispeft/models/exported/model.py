"""An exported graph as a segmentation model that predicts and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from vispeft.errors import ConfigError
from vispeft.models.base import Criterion, DetectionLimits, LossSettings, SegmentationModel
from vispeft.models.exported.files import read_onnx
from vispeft.models.mask_dino.postprocess import postprocess as sigmoid_postprocess
from vispeft.models.softmax_postprocess import postprocess as softmax_postprocess
from vispeft.models.split import Split
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions, Targets

_POSTPROCESS = {"sigmoid": sigmoid_postprocess, "softmax": softmax_postprocess}


class ExportedModel(SegmentationModel):
    """Segmentation model from an ONNX file of `vispeft export`. It has no parameters: the graph holds the weights.

    Predictions and instances are those of the exported model within rounding. What trains or changes a model raises
    ConfigError.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.graph, self.description = read_onnx(path)

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
        """Return the only height and width that the graph takes."""
        return self.description.padded_size

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel in 0..255."""
        return self.description.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel in 0..255."""
        return self.description.pixel_std

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """Return the predictions of the final layer for images [B, C, H, W]; `targets` are not used."""
        self._check_sides(images.shape[-2:])
        class_logits, *boxes, mask_embeddings, mask_features = self.graph(images)
        final = LayerPredictions(class_logits, boxes[0] if boxes else None, mask_embeddings)
        return Predictions((final,), mask_features)

    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first, as the exported model does."""
        postprocess = _POSTPROCESS[self.description.class_scores]
        return postprocess(predictions, metas, padded_size=padded_size, limits=limits)

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError for an image size that does not fill the graph's input."""
        self._check_sides((-(-image_size // self.size_divisor) * self.size_divisor,) * 2)

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

    def _check_sides(self, sides: Sequence[int]) -> None:
        side = self.description.padded_size
        if tuple(sides) != (side, side):
            raise ConfigError(
                f"`{self.path}` was exported for inputs of {side}x{side} pixels, but the input has "
                f"{sides[0]}x{sides[1]}. Use its `image_size`, {self.description.image_size}, or the run."
            )

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"`{self.path}` is an exported model, which only predicts. Use the run that it came from.")
