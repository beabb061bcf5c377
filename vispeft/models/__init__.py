"""Segmentation models as plain modules. Nothing here knows of parameter-efficient fine-tuning."""

from vispeft.models.bundled import bundled_path, load_bundled, save_bundled
from vispeft.models.mask_dino.model import MaskDINO
from vispeft.models.registry import MODELS, SIZES, MaskDINOSize, build_model
from vispeft.models.weights import load_weights

__all__ = [
    "MODELS",
    "SIZES",
    "MaskDINO",
    "MaskDINOSize",
    "build_model",
    "bundled_path",
    "load_bundled",
    "load_weights",
    "save_bundled",
]
