"""A universal segmentation model of transformers as a `SegmentationModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_models import check_size
from vispeft.models.base import DetectionLimits, LossSettings, SavesDirectory, SegmentationModel
from vispeft.models.input_rule import InputRule
from vispeft.models.postprocess import best_instances, check_metas
from vispeft.models.roles import roles_for
from vispeft.models.softmax_scores import SoftmaxLabelMaps
from vispeft.models.split import Split, SplitPointError
from vispeft.models.weight_files import load_state
from vispeft.models.wrappers.criterion import Criterion
from vispeft.models.wrappers.kinds import Answer, kind_of
from vispeft.models.wrappers.library import set_activation_checkpointing
from vispeft.models.wrappers.weights import fit_class_head, side_of, write_directory
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions, Targets

_NETWORK = "network"


class TransformersModel(SegmentationModel, SavesDirectory, SoftmaxLabelMaps):
    """A network of `AutoModelForUniversalSegmentation`, unchanged, behind the contract of our models.

    The network answers with mask logits, not with mask embeddings and features. Its predictions have the mask logits as
    mask features, one map for each query, and unit vectors as embeddings: their products are the logits to the bit.

    processor: configuration of the network's image processor
    """

    def __init__(self, network: nn.Module, processor: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.processor = dict(processor)
        self._kind = kind_of(self.config)
        self._task = "instance"
        self._rule = InputRule.of(processor)

    @property
    def config(self) -> Any:
        """Return the network's configuration, whose class depends on the model type."""
        return self.network.config

    @property
    def encoder_name(self) -> str:
        """Return the model type, such as `mask2former`."""
        return str(self.config.model_type)

    @property
    def num_classes(self) -> int:
        """Return the number of classes K of the class head, without "no object"."""
        return int(self.config.num_labels)

    @property
    def num_queries(self) -> int:
        """Return the number of queries Q."""
        config = self.config.decoder_config if self.config.model_type == "maskformer" else self.config
        return int(config.num_queries)

    @property
    def size_divisor(self) -> int:
        """Return the number of which H and W must be multiples: the side itself for models of one size."""
        return side_of(self.config) if self._kind.fixed_size else self._rule.size_divisor

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel, RGB, in 0..255, by the image processor."""
        return self._rule.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, RGB, in 0..255, by the image processor."""
        return self._rule.pixel_std

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """images: [B, 3, H, W] float, normalised and padded; `targets` are not used.

        In eval mode the predictions are those of the final layer. Raises ConfigError where H or W is not a multiple of
        `size_divisor`.
        """
        check_size(images, self.size_divisor)
        self._check_side(max(images.shape[-2:]))
        answers = self._kind.answers(self.network, images, self._task)
        layers = [_layer(answer) for answer in (answers if self.training else answers[-1:])]
        final_masks = answers[-1][1]
        return Predictions((*layers[:-1], replace(layers[-1], mask_features=None)), final_masks)

    def on_task(self, task: str) -> None:
        """Set the task, `instance`, `semantic` or `panoptic`, which OneFormer takes as an input."""
        self._task = task

    def criterion(self, settings: LossSettings) -> Criterion:
        """Return the network's own loss. A number of points counts for losses that are taken at points."""
        return Criterion(self.network, self._kind, num_points=settings.num_points)

    @torch.no_grad()
    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first; boxes enclose the masks."""
        check_metas(predictions, metas)
        # products with unit vectors would spread what is not finite in one mask to all
        finite = predictions.mask_features.nan_to_num(nan=-1e4, posinf=1e4, neginf=-1e4)
        predictions = replace(predictions, mask_features=finite)
        # the last entry is "no object"
        probs = predictions.final.class_logits.float().softmax(-1)[..., :-1].nan_to_num(0.0)  # [B, Q, K]
        return [
            best_instances(predictions, i, probs[i], meta, padded_size=padded_size, limits=limits)
            for i, meta in enumerate(metas)
        ]

    def split(self, images: Tensor) -> Split:
        """Raise SplitPointError: this family has no split point."""
        raise SplitPointError("a model of transformers has no split point")

    def roles(self) -> Mapping[str, str]:
        """Return the roles of the network's model type, and those of its heads and new parts."""
        inside = {**self._kind.roles, **roles_for(self.network)}
        return {role: _inside_network(pattern) for role, pattern in inside.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model by its own names, in place; a class head of another size is fitted."""
        head = f"{_NETWORK}.{self._kind.class_head}"
        fitted = fit_class_head(tensors, head, self.num_classes) if f"{head}.weight" in tensors else tensors
        load_state(self, fitted, source=source)

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the network has positions for images of another size alone."""
        self._check_side(image_size)

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of the layers for which the library can.

        Raises ConfigError for a network without that.
        """
        set_activation_checkpointing(self.network, enable)

    def save_directory(self, path: Path, *, class_names: Sequence[str], image_size: int | None = None) -> None:
        """Write the network as a directory that `AutoModelForUniversalSegmentation.from_pretrained` opens.

        image_size: not used; the image processor keeps its own
        """
        write_directory(self.network, self.processor, path, class_names=class_names)

    def _check_side(self, side: int) -> None:
        if self._kind.fixed_size and side != side_of(self.config):
            raise ConfigError(
                f"`image_size` must be {side_of(self.config)}, for which {self.encoder_name} has positions, but is "
                f"{side}. Leave it out, or choose other `weights`."
            )


def _layer(answer: Answer) -> LayerPredictions:
    class_logits, mask_logits = answer
    num_queries = mask_logits.shape[1]
    unit = torch.eye(num_queries, dtype=mask_logits.dtype, device=mask_logits.device)
    return LayerPredictions(class_logits, None, unit.expand(mask_logits.shape[0], -1, -1), mask_logits)


def _inside_network(pattern: str) -> str:
    """Return a pattern of the network's modules as one of the wrapper's."""
    alternatives = [each.strip() for each in pattern.split("|")]
    return " | ".join(f"{_NETWORK}.{each}" for each in alternatives)
