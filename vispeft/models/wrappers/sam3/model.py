"""SAM 3 of transformers as a `SegmentationModel`: the union of its answers to all class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_models import check_size
from vispeft.models.base import DetectionLimits, LossSettings, SavesDirectory, SegmentationModel, TakesClassNames
from vispeft.models.input_rule import InputRule
from vispeft.models.postprocess import best_instances, boxes_in_pixels, check_metas
from vispeft.models.roles import roles_for
from vispeft.models.roles.placement import prefixed
from vispeft.models.split import Split
from vispeft.models.weight_files import load_state
from vispeft.models.wrappers.library import set_activation_checkpointing
from vispeft.models.wrappers.sam3.answers import Answers, answers_from, encoded
from vispeft.models.wrappers.sam3.criterion import Criterion
from vispeft.models.wrappers.sam3.predictions import PromptPredictions
from vispeft.models.wrappers.sam3.prompts import Prompts, PromptWriter
from vispeft.models.wrappers.sam3.split_point import split_sam3
from vispeft.models.wrappers.weights import side_of, write_directory
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions, Targets

_NETWORK = "network"
# of the classes for which a query was not prompted: its sigmoid is zero
_OTHER_CLASS = -1e4


class Sam3(SegmentationModel, SavesDirectory, TakesClassNames):
    """A `Sam3Model` of transformers, unchanged, behind the contract of our models.

    Its image encoder runs once for an image, and the rest once for each class: query `q` of class `k` is query
    `k Q + q` here. `set_class_names` must be called before the first forward pass.

    processor: configuration of the network's image processor
    """

    def __init__(
        self, network: nn.Module, processor: Mapping[str, Any], writer: PromptWriter, *, num_classes: int
    ) -> None:
        super().__init__()
        self.network = network
        self.processor = dict(processor)
        self.writer = writer
        self._num_classes = num_classes
        self._rule = InputRule.of(processor)
        # moved with the model, but neither saved nor a part of the base
        self.register_buffer("prompt_ids", None, persistent=False)
        self.register_buffer("prompt_mask", None, persistent=False)

    @property
    def config(self) -> Any:
        """Return the network's configuration."""
        return self.network.config

    @property
    def encoder_name(self) -> str:
        """Return the model type, `sam3`."""
        return str(self.config.model_type)

    @property
    def num_classes(self) -> int:
        """Return the number of classes K, each a prompt."""
        return self._num_classes

    @property
    def num_queries(self) -> int:
        """Return the number of queries of all prompts together."""
        return self._num_classes * int(self.config.detr_decoder_config.num_queries)

    @property
    def size_divisor(self) -> int:
        """Return the side of the square input, for which the encoder has positions."""
        return side_of(self.config)

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel, RGB, in 0..255, by the image processor."""
        return self._rule.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, RGB, in 0..255, by the image processor."""
        return self._rule.pixel_std

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Take the names of the classes as the prompts, or the texts that `options.prompts` has for them."""
        if len(class_names) != self._num_classes:
            raise ConfigError(
                f"`class_names` must have {self._num_classes} names, one for each class, but has {len(class_names)}."
            )
        prompts = self.writer(class_names)
        device = next(self.parameters()).device
        self.prompt_ids, self.prompt_mask = prompts.ids.to(device), prompts.mask.to(device)

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> PromptPredictions:
        """images: [B, 3, H, W] float, normalised and padded to a square; `targets` are not used."""
        check_size(images, self.size_divisor)
        self.check_image_size(max(images.shape[-2:]))
        return self.continued(encoded(self.network, images))

    def continued(self, tokens: Tensor) -> PromptPredictions:
        """Return the predictions from the tokens of the image encoder, [B, N, D]."""
        if self.prompt_ids is None:
            raise ConfigError("The model has no prompts yet. Call `set_class_names` with the names of its classes.")
        answers = answers_from(self.network, tokens, Prompts(self.prompt_ids, self.prompt_mask))
        masks = answers.mask_logits.flatten(1, 2)
        unit = torch.eye(masks.shape[1], dtype=masks.dtype, device=masks.device).expand(len(masks), -1, -1)
        final = LayerPredictions(_class_logits(answers), answers.boxes[-1].flatten(1, 2), unit)
        return PromptPredictions((final,), masks, answers=answers)

    def criterion(self, settings: LossSettings) -> Criterion:
        """Return the authors' loss for fine-tuning."""
        return Criterion(num_points=settings.num_points)

    @torch.no_grad()
    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first.

        A score is that of the authors: the query's probability times that of the class being in the image.
        """
        check_metas(predictions, metas)
        boxes = predictions.final.predicted_boxes.float()  # [B, K Q, 4]
        probs = predictions.final.class_logits.float().sigmoid().nan_to_num(0.0)  # [B, K Q, K]
        probs = probs * boxes.isfinite().all(dim=-1, keepdim=True)
        return [
            best_instances(
                predictions,
                i,
                probs[i],
                meta,
                padded_size=padded_size,
                limits=limits,
                boxes_xyxy=boxes_in_pixels(boxes[i], meta, padded_size),
                weighs_masks=False,
            )
            for i, meta in enumerate(metas)
        ]

    def split(self, images: Tensor) -> Split:
        """Return the split after the image encoder. SplitPointError where a part of that is trained."""
        return split_sam3(self)

    def roles(self) -> Mapping[str, str]:
        """Return the roles of the network's parts."""
        return prefixed(roles_for(self.network), _NETWORK)

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model by its own names, in place."""
        load_state(self, tensors, source=source)

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError for another size than the one that the network was built for."""
        if image_size != side_of(self.config):
            raise ConfigError(
                f"`image_size` must be {side_of(self.config)}, for which this model was built, but is {image_size}."
            )

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of the layers of both encoders."""
        network: Any = self.network
        # the library does not set this for SAM 3, but its layers have the mode
        network.supports_gradient_checkpointing = True
        set_activation_checkpointing(network, enable)

    def save_directory(self, path: Path, *, class_names: Sequence[str], image_size: int | None = None) -> None:
        """Write network, image processor and tokenizer as a directory that `Sam3Model.from_pretrained` opens."""
        write_directory(self.network, self.processor, path, class_names=class_names)
        self.writer.tokenizer.save_pretrained(path)


def _class_logits(answers: Answers) -> Tensor:
    """Return class logits [B, K Q, K], whose sigmoid is the product of the query's and the presence's probability."""
    presence = F.logsigmoid(answers.presence_logits[-1].float())
    log_probs = F.logsigmoid(answers.query_logits[-1].float()) + presence[..., None]  # [B, K, Q]
    logits = log_probs - torch.log(-torch.expm1(log_probs))
    num_classes = logits.shape[1]
    is_prompted = torch.eye(num_classes, dtype=torch.bool, device=logits.device)[:, None]  # [K, 1, K]
    return torch.where(is_prompted, logits[..., None], _OTHER_CLASS).flatten(1, 2)
