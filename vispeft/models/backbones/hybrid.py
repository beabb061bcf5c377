"""Hybrid of a convolutional network and a ViT, as timm models: `efficientnet_lite0_vit_tiny`.

Importing this module adds them to timm's registry, where every part of vispeft finds them as it finds timm's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models import FeatureInfo, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

CNN = "tf_efficientnet_lite0"
NO_WEIGHTS = (
    "`backbone` efficientnet_lite0_vit_tiny has no pretrained weights of its own. Use the bundled base, which holds "
    "them (`model.weights: bundled`), or `model.weights: none`."
)
_VIT = "vit_small_patch16_rope_ape_224"
_TINY = {"embed_dim": 192, "depth": 6, "num_heads": 3}
# of the ViT, whose patches are the cells of the network's map of stride 16
_GRID = {"patch_size": 1, "img_size": 14, "class_token": False, "global_pool": "", "init_values": None}

default_cfgs = generate_default_cfgs(
    {"efficientnet_lite0_vit_tiny": {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3}}
)


class HybridFeatures(nn.Module):
    """A convolutional network as the patch embedding of a ViT (Dosovitskiy et al. 2021, section 3.1).

    The tokens are the cells of the network's map of stride 16, concatenated with the upsampled map of stride 32. The
    maps are the network's at the strides 4 and 8, the last block's at 16, and the same after 2 x 2 max pooling at 32.

    The network's BatchNorm layers are constants, since batches of a detector are too small for their statistics
    (FrozenBatchNorm of detectron2 and torchvision).

    in_chans: channels of the images
    vit_options: for timm's ViT with rotary positions
    """

    def __init__(self, *, in_chans: int = 3, **vit_options: Any) -> None:
        super().__init__()
        cnn: Any = timm.create_model(CNN, features_only=True, out_indices=(1, 2, 3, 4), in_chans=in_chans)
        self.cnn: Any = freeze_batch_norm_2d(cnn)  # type: ignore[no-untyped-call]
        channels = cnn.feature_info.channels()
        options = {**_GRID, "dynamic_img_size": True, **vit_options, "in_chans": channels[2] + channels[3]}
        model: Any = timm.create_model(_VIT, num_classes=0, **options)
        model.prune_intermediate_layers([len(model.blocks) - 1], prune_norm=True, prune_head=True)
        self.model: Any = model
        maps = (
            *({"num_chs": channels[i], "reduction": 4 << i, "module": "cnn"} for i in range(2)),
            *({"num_chs": model.embed_dim, "reduction": 16 << i, "module": "model.blocks"} for i in range(2)),
        )
        self.feature_info = FeatureInfo(list(maps), (0, 1, 2, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps [B, C_i, H / s, W / s] for s of 4, 8, 16, 32. images: [B, C, H, W], multiples of 32"""
        return self.from_cnn_maps(self.cnn(images))

    def from_cnn_maps(self, cnn_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of `forward` from those of `cnn`, of the strides 4, 8, 16 and 32."""
        *fine, middle, last = cnn_maps
        cells = torch.cat((middle, F.interpolate(last, scale_factor=2.0)), dim=1)
        (x,) = self.model.forward_intermediates(cells, indices=1, intermediates_only=True)
        return [*fine, x, F.max_pool2d(x, 2)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of the network's stages and of the blocks in backward."""
        self.cnn.set_grad_checkpointing(enable)
        self.model.set_grad_checkpointing(enable)


@register_model
def efficientnet_lite0_vit_tiny(pretrained: bool = False, **kwargs: Any) -> HybridFeatures:
    """Return EfficientNet-Lite0 under six ViT blocks of width 192, as a feature backbone.

    Raises ValueError for weights of the backbone alone, of which there are none, and for another form than features.
    """
    if pretrained:
        raise ValueError(NO_WEIGHTS)
    if not kwargs.pop("features_only", False):
        raise ValueError("it gives features alone (features_only=True)")
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes"):
        kwargs.pop(key, None)
    return HybridFeatures(**{**_TINY, **kwargs})
