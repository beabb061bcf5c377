"""Segmentation models as plain modules. Nothing here knows of parameter-efficient fine-tuning."""

from vispeft.models.build import MODELS, SIZES, MaskDINOSize, build_model
from vispeft.models.mask_dino import MaskDINO

__all__ = ["MODELS", "SIZES", "MaskDINO", "MaskDINOSize", "build_model"]
