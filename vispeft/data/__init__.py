"""Reading, checking, augmentation and loading of COCO instance sets.

Names are loaded when they are first used: commands that read annotations alone do not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vispeft.lazy_names import lazy_names

if TYPE_CHECKING:
    from vispeft.data.loading.collate import collate
    from vispeft.data.loading.loader import Loader, draw_loader, eval_draws, train_draws
    from vispeft.data.loading.sampling import repeat_factors
    from vispeft.data.reading.coco import read_coco
    from vispeft.data.reading.dataset import Draw, InstanceDataset, Sample
    from vispeft.data.transforms.augmentation import EvalTransform, Example, TrainTransform, Transform

_HOMES = {
    "collate": "vispeft.data.loading.collate",
    **dict.fromkeys(("Loader", "draw_loader", "eval_draws", "train_draws"), "vispeft.data.loading.loader"),
    "repeat_factors": "vispeft.data.loading.sampling",
    "read_coco": "vispeft.data.reading.coco",
    **dict.fromkeys(("Draw", "InstanceDataset", "Sample"), "vispeft.data.reading.dataset"),
    **dict.fromkeys(
        ("EvalTransform", "Example", "TrainTransform", "Transform"), "vispeft.data.transforms.augmentation"
    ),
}

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

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
