"""Contract of segmentation models: everything that the rooms above need of a model.

A family is a subclass of `SegmentationModel` and an entry in `vispeft.models.registry.FAMILIES`. Training, evaluation,
prediction, estimates and reports work with any family that keeps this contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.class_head import ClassHead
from vispeft.models.split import Split
from vispeft.structures import ImageMeta, Instances, Predictions, Targets

Criterion = Callable[[Predictions, Sequence[Targets]], dict[str, Tensor]]
"""Weighted scalar losses by name, float32, of a batch's predictions and its targets."""


@dataclass(frozen=True)
class ModelArguments:
    """Arguments from which a family builds a model.

    backbone: name of the encoder, such as a timm model; `pretrained` and `backbone_weights` are sources of its weights
    image_size: side of the square input in pixels, for encoders that must know it
    backbone_options: further arguments of the encoder
    size: name of one of the family's sizes
    options: single fields that differ from that size
    """

    num_classes: int
    backbone: str
    pretrained: bool
    backbone_weights: Path | None
    image_size: int | None
    backbone_options: Mapping[str, Any]
    size: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class LossSettings:
    """Settings of a training loss that do not depend on the family.

    num_points: points at which the mask losses and the matching costs read a mask; None for the family's published
        number
    labelled_classes: classes whose instances the data annotate, as class indices; None: all. The class loss neither
        raises nor lowers the logits of other classes where an image has no annotation
    """

    num_points: int | None = None
    labelled_classes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DetectionLimits:
    """Limits of the instances that are made of predictions.

    max_detections: most instances of an image
    score_threshold: instances with a lower score are left out, 0..1
    """

    max_detections: int = 300
    score_threshold: float = 0.0


class SegmentationModel(nn.Module, ABC):
    """Instance segmentation model: images in, `Predictions` out.

    The letters of shapes are those of `vispeft.structures`. The model is built without deltas; whoever attaches them
    needs nothing but the names of its modules, which `roles` abbreviates.
    """

    @property
    @abstractmethod
    def encoder_name(self) -> str:
        """Return the name of the encoder, such as the timm model."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Return the number of classes K of the class head."""

    @property
    @abstractmethod
    def num_queries(self) -> int:
        """Return the number of queries Q, the most objects that one image can have."""

    @property
    @abstractmethod
    def size_divisor(self) -> int:
        """Return the number of which H and W must be multiples."""

    @property
    @abstractmethod
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel, RGB for three, in 0..255, by which images are normalised."""

    @property
    @abstractmethod
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, RGB for three, in 0..255, by which images are normalised."""

    @property
    def num_channels(self) -> int:
        """Return the number of channels C of the images."""
        return len(self.pixel_mean)

    @abstractmethod
    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """Return the predictions for a batch.

        images: [B, C, H, W] float, normalised, zero in the padding
        targets: of each image in train mode, for families whose training adds noised targets as queries
        """

    @abstractmethod
    def criterion(self, settings: LossSettings) -> Criterion:
        """Return the family's training loss."""

    @abstractmethod
    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first.

        predictions: in float32
        padded_size: H and W
        """

    @abstractmethod
    def split(self, images: Tensor) -> Split:
        """Return the model in two parts, for images of this size, at the last point with nothing trained before it.

        Raises SplitPointError where the first part of the model is trained or the family cannot be split.

        images: [B, C, H, W]
        """

    @abstractmethod
    def roles(self) -> Mapping[str, str]:
        """Return the site pattern of each role (without `@`): what the parts of the model are called in plans."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model, in place, by its own names or by those of its official checkpoints.

        A class head of another size is fitted. Raises CheckpointError naming the tensors that are missing, unknown or
        of another shape; the model is unchanged then.

        source: name of the file, for errors
        """

    def class_rows(self) -> ClassHead:
        """Return the modules with a row for each class, to which classes can be added.

        A family that gives them must also follow `LossSettings.labelled_classes`. Raises ConfigError in others.
        """
        raise ConfigError("`model.keep_classes` must be false: this model family cannot add classes to its head.")

    @abstractmethod
    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the encoder cannot take images whose longer side has `image_size` pixels."""

    @abstractmethod
    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them.

        Raises ConfigError where the encoder has no such mode.
        """


class FollowsProgress(ABC):
    """A model that changes with the progress of training. A family that does inherits this beside `SegmentationModel`.

    The change must depend on nothing but the numbers given, so that a resumed run needs no more than them.
    """

    @abstractmethod
    def on_progress(self, step: int, num_steps: int) -> None:
        """React to the progress, in every process. Training calls it before its first step and after every step.

        step: steps done; that of the checkpoint where a run is resumed
        num_steps: steps of the whole run
        """


class SavesDirectory(ABC):
    """A model whose plain checkpoint is a directory of its own library. A family of such inherits this beside
    `SegmentationModel`.
    """

    @abstractmethod
    def save_directory(self, path: Path, *, class_names: Sequence[str]) -> None:
        """Write the model without deltas as a directory that its library opens.

        class_names: by contiguous class index
        """
