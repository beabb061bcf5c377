"""COCO instance sets: read, checked, augmented and loaded."""

from vispeft.data.coco import read_coco
from vispeft.data.collate import collate
from vispeft.data.dataset import Draw, InstanceDataset, Sample
from vispeft.data.loader import Loader, build_loader, draw_loader, eval_draws, train_draws
from vispeft.data.problems import CheckReport, Problem
from vispeft.data.sampling import repeat_factors
from vispeft.data.sets import Annotation, Category, CocoSet, ImageEntry, match_categories, to_annotations
from vispeft.data.transforms import EvalTransform, Example, TrainTransform, Transform

__all__ = [
    "Annotation",
    "Category",
    "CheckReport",
    "CocoSet",
    "Draw",
    "EvalTransform",
    "Example",
    "ImageEntry",
    "InstanceDataset",
    "Loader",
    "Problem",
    "Sample",
    "TrainTransform",
    "Transform",
    "build_loader",
    "collate",
    "draw_loader",
    "eval_draws",
    "match_categories",
    "read_coco",
    "repeat_factors",
    "to_annotations",
    "train_draws",
]
