"""Published models in the place of runs, to score them and to predict with them as they are."""

from __future__ import annotations

from collections.abc import Sequence

from vispeft.config import Config, parse_config
from vispeft.errors import ConfigError
from vispeft.models.bundled import bundled_class_names
from vispeft.models.coco_classes import COCO_CLASSES
from vispeft.zoo import ZooModel

# ids between 1 and 90 that COCO's instances do not use
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(number for number in range(1, 91) if number not in _UNUSED_IDS)


def published_config(model: ZooModel, overrides: Sequence[str]) -> Config:
    """Return the configuration that evaluates a published model, at the input size next to that of its authors."""
    return parse_config({"model": {"weights": model.name, "image_size": model.image_size}}, overrides)


def classes_of(model: ZooModel) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and category ids of the classes of a published model.

    Raises ConfigError for one that answers for other classes than the 80 of COCO's instances.
    """
    if model.weights == "bundled":
        names = bundled_class_names()
        return names, tuple(range(1, len(names) + 1))
    if not model.takes_coco_classes:
        raise ConfigError(
            f"`{model.name}` answers for other classes than the 80 of COCO's instances, and is no run. Train it: "
            f"vispeft train configs/{model.recipe} model.weights={model.name} ..."
        )
    return COCO_CLASSES, COCO_IDS
