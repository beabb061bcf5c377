"""Mask2Former: backbone, pixel decoder and decoder joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vispeft.losses.points import PUBLISHED_POINTS
from vispeft.models.backbones.input_size import check_image_size
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.backbones.timm_models import check_size
from vispeft.models.base import DetectionLimits, LossSettings, SegmentationModel
from vispeft.models.class_head import ClassHead
from vispeft.models.layers.pixel_decoder import PixelDecoder
from vispeft.models.mask2former.criterion import Criterion
from vispeft.models.mask2former.decoder import Mask2FormerDecoder
from vispeft.models.mask2former.weights import CLASS_HEAD, load_mask2former
from vispeft.models.pixel_decoder_split import split_pixel_decoder_model
from vispeft.models.roles.mask2former import MASK2FORMER
from vispeft.models.softmax_postprocess import postprocess
from vispeft.models.split import Split
from vispeft.structures import ImageMeta, Instances, Predictions, Targets


class Mask2Former(SegmentationModel):
    """Segmentation by queries with masked attention (Cheng et al., CVPR 2022; https://arxiv.org/abs/2112.01527)."""

    def __init__(self, backbone: Backbone, pixel_decoder: PixelDecoder, decoder: Mask2FormerDecoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder

    @property
    def encoder_name(self) -> str:
        """Return the name of the timm model."""
        return self.backbone.name

    @property
    def num_queries(self) -> int:
        """Return the number of queries Q."""
        return self.decoder.query_feat.num_embeddings

    @property
    def size_divisor(self) -> int:
        """Return the number of which H and W must be multiples."""
        return self.backbone.size_divisor

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Return the mean of each channel in 0..255, in the backbone's pretraining."""
        return self.backbone.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel in 0..255, in the backbone's pretraining."""
        return self.backbone.pixel_std

    @property
    def num_classes(self) -> int:
        """Return the number of classes K of the class head, without "no object"."""
        return self.decoder.class_embed.out_features - 1

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of the blocks, of both decoders' layers and of the mask features.

        Raises ConfigError for a backbone without such a switch.
        """
        self.backbone.set_activation_checkpointing(enable)
        self.pixel_decoder.recomputes = enable
        self.decoder.recomputes = enable

    def criterion(self, settings: LossSettings) -> Criterion:
        """Return the published loss. Matching costs are taken at as many points as mask losses."""
        return Criterion(num_points=settings.num_points or PUBLISHED_POINTS, labelled_classes=settings.labelled_classes)

    def instances(
        self,
        predictions: Predictions,
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        limits: DetectionLimits,
    ) -> list[Instances]:
        """Return the instances of every image of a batch in its own pixels, best first."""
        return postprocess(predictions, metas, padded_size=padded_size, limits=limits)

    def roles(self) -> Mapping[str, str]:
        """Return the roles of the encoder's family and those of Mask2Former's own parts."""
        # parts without weights in a backbone's checkpoint
        new = "backbone.pyramid | pixel_decoder | decoder" if self.backbone.is_plain else "pixel_decoder | decoder"
        return {**self.backbone.roles("backbone"), **MASK2FORMER, "new": new}

    def load_tensors(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors of a whole model, in place; official names are understood, a class head is fitted."""
        load_mask2former(self, tensors, source=source)

    def class_rows(self) -> ClassHead:
        """Return the class map."""
        return CLASS_HEAD

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the backbone does not give its maps for images of `image_size` pixels."""
        check_image_size(self.backbone, image_size)

    def split(self, images: Tensor) -> Split:
        """Return the model in two parts, for images of this size, at the last point with nothing trained before it.

        Raises SplitPointError where the first part of the backbone is trained.

        images: [B, 3, H, W]
        """
        return split_pixel_decoder_model(self, images)

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """images: [B, 3, H, W] float, normalised and padded; `targets` are not used.

        Raises ConfigError where H or W is not a multiple of `size_divisor`.
        """
        check_size(images, self.size_divisor)
        predictions: Predictions = self.decoder(self.pixel_decoder(self.backbone(images)))
        return predictions
