"""Segmentation models as plain modules. Nothing here knows of parameter-efficient fine-tuning."""

from vispeft.models.base import DetectionLimits, FollowsProgress, LossSettings, ModelArguments, SegmentationModel
from vispeft.models.bundled import bundled_path, load_bundled, save_bundled
from vispeft.models.eomt.config import EoMTSize
from vispeft.models.eomt.model import EoMT
from vispeft.models.mask2former.config import Mask2FormerSize
from vispeft.models.mask2former.model import Mask2Former
from vispeft.models.mask_dino.config import MaskDINOSize
from vispeft.models.mask_dino.model import MaskDINO
from vispeft.models.pmt.config import PMTSize
from vispeft.models.pmt.model import PMT
from vispeft.models.registry import FAMILIES, ModelFamily, build_model
from vispeft.models.weight_files import load_weights
from vispeft.models.wrappers.model import TransformersModel

__all__ = [
    "FAMILIES",
    "PMT",
    "DetectionLimits",
    "EoMT",
    "EoMTSize",
    "FollowsProgress",
    "LossSettings",
    "Mask2Former",
    "Mask2FormerSize",
    "MaskDINO",
    "MaskDINOSize",
    "ModelArguments",
    "ModelFamily",
    "PMTSize",
    "SegmentationModel",
    "TransformersModel",
    "build_model",
    "bundled_path",
    "load_bundled",
    "load_weights",
    "save_bundled",
]
