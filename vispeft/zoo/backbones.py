"""Encoders of timm that are worth a try."""

from __future__ import annotations

from vispeft.zoo.entry import APACHE, Backbone

_DINOV2 = "https://github.com/facebookresearch/dinov2"
_DINOV3 = "https://github.com/facebookresearch/dinov3"
_DINOV3_LICENCE = "DINOv3 License"
_PLAIN = ("mask_dino", "mask2former", "eomt", "pmt")
_ANY = ("mask_dino", "mask2former")

BACKBONES: tuple[Backbone, ...] = (
    Backbone("vit_small_patch14_reg4_dinov2.lvd142m", "DINOv2 ViT-S with registers", _DINOV2, APACHE, 22.1, _PLAIN),
    Backbone("vit_base_patch14_reg4_dinov2.lvd142m", "DINOv2 ViT-B with registers", _DINOV2, APACHE, 86.6, _PLAIN),
    Backbone("vit_large_patch14_reg4_dinov2.lvd142m", "DINOv2 ViT-L with registers", _DINOV2, APACHE, 304.4, _PLAIN),
    Backbone("vit_small_patch16_dinov3.lvd1689m", "DINOv3 ViT-S", _DINOV3, _DINOV3_LICENCE, 21.6, _PLAIN),
    Backbone("vit_base_patch16_dinov3.lvd1689m", "DINOv3 ViT-B", _DINOV3, _DINOV3_LICENCE, 85.6, _PLAIN),
    Backbone("vit_large_patch16_dinov3.lvd1689m", "DINOv3 ViT-L", _DINOV3, _DINOV3_LICENCE, 303.1, _PLAIN),
    Backbone("convnext_tiny.dinov3_lvd1689m", "DINOv3 ConvNeXt-T", _DINOV3, _DINOV3_LICENCE, 27.8, _ANY),
    Backbone(
        "resnet50", "ResNet-50, ImageNet", "https://github.com/huggingface/pytorch-image-models", APACHE, 23.5, _ANY
    ),
)
