"""Reading, checking, augmentation and loading of COCO instance sets."""

from vispeft.data.loading.collate import collate
from vispeft.data.loading.loader import Loader, draw_loader, eval_draws, train_draws
from vispeft.data.loading.sampling import repeat_factors
from vispeft.data.reading.coco import read_coco
from vispeft.data.reading.dataset import Draw, InstanceDataset, Sample
from vispeft.data.transforms.augmentation import EvalTransform, Example, TrainTransform, Transform

__all__ = [
    "Draw",
    "EvalTransform",
    "Example",
    "InstanceDataset",
    "Loader",
    "Sample",
    "TrainTransform",
    "Transform",
    "collate",
    "draw_loader",
    "eval_draws",
    "read_coco",
    "repeat_factors",
    "train_draws",
]
