"""A plain ViT of timm block by block, from the tokens before its first block to the last norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_models import (
    Source,
    channels_of,
    create,
    first_line,
    padded_side,
    timm_module_of,
)
from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.modes import evaluating
from vispeft.models.roles.placement import prefixed
from vispeft.models.roles.timm import encoder_roles

_MODULES = ("timm.models.vision_transformer", "timm.models.eva")
_TOKENS = {"num_classes": 0}


class PlainViT(nn.Module):
    """Plain ViT of timm whose tokens a family takes after any block, or into whose blocks it brings its own tokens.

    ViTs with learned positions (`vit_*`, DINOv2 with registers too) and those with rotary positions (`vit_*_dinov3`,
    `vit_*_rope_*`, EVA-02).

    dim: width C of the tokens
    num_prefix: class and register tokens, which stand before those of the patches
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        channels, options = channels_of(name, options or {})
        module = timm_module_of(name, options)
        if module not in _MODULES:
            raise ConfigError(
                f"`backbone` must be a plain ViT of timm (`vit_*` or `eva02_*`), but is {name!r}, which runs its "
                "blocks in another way. Choose one such as vit_base_patch14_reg4_dinov2 or vit_base_patch16_dinov3."
            )
        body = create(Source(name, pretrained, weights), {"dynamic_img_size": True, **options}, form=_TOKENS)
        assert isinstance(body, VisionTransformer | Eva)
        # no pooling either: its parameters would never get a gradient
        body.reset_classifier(0, "")
        if isinstance(body.norm, nn.Identity):
            raise ConfigError(
                f"`backbone` must have its last norm on the tokens, but {name!r} has it behind the pooling. "
                "Choose another."
            )
        self.name = name
        self.body: VisionTransformer | Eva = body
        self.recomputes = False
        self.dim: int = body.embed_dim
        self.num_prefix: int = body.num_prefix_tokens
        self.pixel_mean, self.pixel_std = channels.pixel_mean, channels.pixel_std
        self._module = module

    @property
    def patch_size(self) -> tuple[int, int]:
        """Return height and width of a patch in pixels."""
        height, width = self.body.patch_embed.patch_size
        return height, width

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks."""
        return len(self.body.blocks)

    @property
    def head_dim(self) -> int:
        """Return the channels of one attention head."""
        attention: Any = self.body.blocks[0].attn
        return int(self.dim // attention.num_heads)

    def embedded(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens before the first block, and their rotary positions; None for learned positions.

        images: [B, C, H, W]
        Tokens are [B, P + H W, C], prefix first, then patches by rows. The positions are timm's, of the patches alone.
        """
        x = self.body.patch_embed(images)
        # timm's own step of `forward_features`; no public one gives the positions that it draws in train mode
        if isinstance(self.body, Eva):
            x, rotary = self.body._pos_embed(x)
            return self.body.norm_pre(x), rotary
        return self.body.norm_pre(self.body.patch_drop(self.body._pos_embed(x))), None

    def rotary_positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Return the rotary positions of a grid of patches, as `embedded` gives them in eval mode."""
        if not isinstance(self.body, Eva) or self.body.rope is None:
            return None
        rope: Any = self.body.rope
        rotary: Tensor = rope.get_embed(shape=list(grid))
        return rotary

    def run_blocks(self, x: Tensor, rotary: Tensor | None, blocks: range) -> Tensor:
        """Return the tokens [B, P + H W, C] after some blocks, by their numbers."""
        for index in blocks:
            x = self.run_block(index, x, rotary)
        return x

    def run_block(self, index: int, x: Tensor, rotary: Tensor | None, attention_mask: Tensor | None = None) -> Tensor:
        """Return the tokens [B, N, C] after a block.

        rotary: of all tokens but the first P (see `with_unrotated`)
        attention_mask: [B, 1, N, N] bool, True where a token (row) may attend to another (column); None: everywhere
        """
        block: Callable[..., Tensor] = self.body.blocks[index]
        if isinstance(self.body, Eva):
            # learned frequencies differ from block to block
            of_block = rotary[index] if rotary is not None and self.body.rope_mixed else rotary
            block = partial(block, rope=of_block)
        return run_layer(partial(block, attn_mask=attention_mask), x, recompute=self.recomputes)

    def norm(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, C] after the last norm of the model."""
        y: Tensor = self.body.norm(x)
        return y

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches of images [B, C, H, W]."""
        height, width = self.patch_size
        return images.shape[-2] // height, images.shape[-1] // width

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in backward instead of keeping them."""
        self.recomputes = enable

    def check_image_size(self, image_size: int) -> None:
        """Raise ConfigError if the model does not make tokens of images of `image_size` pixels."""
        side = padded_side(image_size, max(self.patch_size))
        try:
            with evaluating(self):
                self.body.forward_intermediates(
                    torch.zeros(1, len(self.pixel_mean), side, side),
                    indices=[0],
                    stop_early=True,
                    intermediates_only=True,
                )
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"`backbone` {self.name} cannot take `image_size` {image_size} ({first_line(error)}). Check "
                "`backbone_options`, or choose another `image_size`."
            ) from error

    def roles(self, name: str) -> dict[str, str]:
        """Return the roles `encoder.*` with patterns from the model's root. name: of this module in its model"""
        return prefixed(encoder_roles(self._module, self.body), f"{name}.body")
