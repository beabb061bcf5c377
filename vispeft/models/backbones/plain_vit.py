"""A plain ViT of timm in two parts: its first blocks on the image's tokens, and its last blocks one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_models import (
    Source,
    create,
    first_line,
    padded_side,
    pixel_statistics,
    timm_module_of,
)
from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.modes import evaluating
from vispeft.models.roles.placement import prefixed
from vispeft.models.roles.timm import encoder_roles

_MODULE = "timm.models.vision_transformer"
_TOKENS = {"num_classes": 0}


class PlainViT(nn.Module):
    """Plain ViT (`vit_*` of timm, DINOv2 with registers too) into whose last blocks a family brings its own tokens.

    dim: width C of the tokens
    num_prefix: class and register tokens, which stand before those of the patches
    """

    def __init__(
        self,
        name: str,
        *,
        num_last: int,
        pretrained: bool = False,
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        if timm_module_of(name, options) != _MODULE:
            raise ConfigError(
                f"`backbone` must be a plain ViT of timm with learned positions (`vit_*`), but is {name!r}, which "
                "runs its blocks in another way. Choose one such as vit_base_patch14_reg4_dinov2."
            )
        body = create(Source(name, pretrained, weights), {"dynamic_img_size": True, **options}, form=_TOKENS)
        assert isinstance(body, VisionTransformer)
        # no pooling either: its parameters would never get a gradient
        body.reset_classifier(0, "")
        if isinstance(body.norm, nn.Identity):
            raise ConfigError(
                f"`backbone` must have its last norm on the tokens, but {name!r} has it behind the pooling. "
                "Choose another."
            )
        if not 1 <= num_last < len(body.blocks):
            raise ConfigError(
                f"`options.num_blocks` must be in 1..{len(body.blocks) - 1} for `backbone` {name!r}, but is {num_last}."
            )
        self.name = name
        self.num_last = num_last
        self.body: VisionTransformer = body
        self.recomputes = False
        self.dim: int = body.embed_dim
        self.num_prefix: int = body.num_prefix_tokens
        self.pixel_mean, self.pixel_std = pixel_statistics(name)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Return height and width of a patch in pixels."""
        height, width = self.body.patch_embed.patch_size
        return height, width

    @property
    def last_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks that take the family's tokens."""
        return tuple(self.body.blocks[-self.num_last :])

    def first_tokens(self, images: Tensor) -> Tensor:
        """Return the tokens after the first blocks: [B, P + H W, C], prefix first, then patches by rows.

        images: [B, 3, H, W]
        """
        last_idx = len(self.body.blocks) - self.num_last - 1
        outputs: Any = self.body.forward_intermediates(
            images,
            indices=[last_idx],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            return_prefix_tokens=True,
        )
        if not self.num_prefix:
            tokens: Tensor = outputs[0]
            return tokens
        patches, prefix = outputs[0]
        return torch.cat((prefix, patches), dim=1)

    def run_block(self, block: nn.Module, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the tokens [B, N, C] after one of the last blocks.

        attention_mask: [B, 1, N, N] bool, True where a token (row) may attend to another (column); None: everywhere
        """
        return run_layer(partial(block, attn_mask=attention_mask), x, recompute=self.recomputes)

    def norm(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, C] after the last norm of the model."""
        y: Tensor = self.body.norm(x)
        return y

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches of images [B, 3, H, W]."""
        height, width = self.patch_size
        return images.shape[-2] // height, images.shape[-1] // width

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in backward instead of keeping them."""
        self.body.set_grad_checkpointing(enable)
        self.recomputes = enable

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the model does not make tokens of images of `image_size` pixels."""
        side = padded_side(image_size, max(self.patch_size))
        try:
            with evaluating(self):
                self.body.forward_intermediates(
                    torch.zeros(1, 3, side, side), indices=[0], stop_early=True, intermediates_only=True
                )
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"`backbone` {self.name} cannot take `image_size` {image_size} ({first_line(error)}). Check "
                "`backbone_options`, or choose another `image_size`."
            ) from error

    def roles(self, name: str) -> dict[str, str]:
        """Return the roles `encoder.*` with patterns from the model's root. name: of this module in its model"""
        return prefixed(encoder_roles(_MODULE, self.body), f"{name}.body")
