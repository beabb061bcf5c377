"""Mask DINO: backbone, pixel decoder and decoder joined."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vispeft.models.backbones.timm_encoder import Backbone, check_size
from vispeft.models.mask_dino.decoder import MaskDINODecoder
from vispeft.models.mask_dino.pixel_decoder import PixelDecoder
from vispeft.models.mask_dino.split_point import split_mask_dino
from vispeft.models.split import Split
from vispeft.structures import Predictions, Targets


class MaskDINO(nn.Module):
    """Instance segmentation by queries (Li et al., CVPR 2023; https://arxiv.org/abs/2206.02777)."""

    def __init__(self, backbone: Backbone, pixel_decoder: PixelDecoder, decoder: MaskDINODecoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder

    @property
    def size_divisor(self) -> int:
        """Return the number of which the input's height and width must be multiples."""
        return self.backbone.size_divisor

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Statistics of the backbone's pretraining per channel, RGB, in 0..255."""
        return self.backbone.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Statistics of the backbone's pretraining per channel, RGB, in 0..255."""
        return self.backbone.pixel_std

    @property
    def num_classes(self) -> int:
        """Number of classes that the head tells apart."""
        return self.decoder.class_embed.out_features

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute in backward the activations of the blocks, of both decoders' layers and of the mask features.

        Passes on timm's error for a backbone without such a switch.
        """
        self.backbone.set_activation_checkpointing(enable)
        self.pixel_decoder.recomputes = enable
        self.decoder.recomputes = enable

    def split(self, images: Tensor) -> Split:
        """Return the model in two parts, for images of this size, at the last point with nothing trained before it.

        Raises SplitPointError where the first part of the backbone is trained.

        images: [B, 3, H, W]
        """
        return split_mask_dino(self, images)

    def forward(self, images: Tensor, targets: Sequence[Targets] | None = None) -> Predictions:
        """images: [B, 3, H, W] float, normalised and padded; `targets` for denoising in training mode only.

        Raises ConfigError where H or W is not a multiple of `size_divisor`.
        """
        check_size(images, self.size_divisor)
        predictions: Predictions = self.decoder(
            self.pixel_decoder(self.backbone(images)), targets if self.training else None
        )
        return predictions
