"""Names of the classes of weights and adapters; `model.keep_classes`: they stay, and those of the data set are added.

What the data do not annotate is not forgotten. The class loss leaves out classes without labels, and after each step
their rows, and that of "no object", are as they were in the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vispeft import peft
from vispeft.coco.sets import Category, CocoSet, match_categories
from vispeft.config import ModelConfig
from vispeft.errors import CheckpointError, ConfigError
from vispeft.io.tensors import read_metadata
from vispeft.models import SegmentationModel
from vispeft.models.class_head import add_classes, nearest_class, normalised
from vispeft.models.coco_classes import COCO_CLASSES
from vispeft.models.weight_directories import directory_class_names, is_weights_directory

_HEADER = "class_names"


def weights_class_names(config: ModelConfig, num_classes: int | None, path: Path | None) -> tuple[str, ...]:
    """Return the names of the classes of the weights, in order.

    num_classes: classes of the weights' head; None without a head
    path: of the weights file, whose header may name them; None where the weights are no such file

    Raises ConfigError where the weights have no classes, or their names are not known.
    """
    if num_classes is None:
        raise ConfigError(
            f"`model.keep_classes` must be false with `model.weights: {config.weights}`, which has no classes. Name a "
            "weights file of a whole model."
        )
    names = config.weights_classes or _names_in(path)
    if not names and num_classes == len(COCO_CLASSES):
        names = COCO_CLASSES
    if len(names) != num_classes:
        given = f"names {len(names)}" if names else "names none"
        raise ConfigError(
            f"`model.keep_classes` needs the names of the {num_classes} classes of `model.weights: {config.weights}`, "
            f"which {given}. List them, in order, under `model.weights_classes`."
        )
    if len(set(names)) < len(names):
        raise ConfigError("`model.weights_classes` must name each class once, but names one twice.")
    return names


def known_class_names(config: ModelConfig, num_classes: int | None, path: Path | None) -> tuple[str, ...]:
    """Return the names of the classes of the weights, in order; none where they are not known.

    num_classes: classes of the weights' head; None without a head
    path: of the weights file, whose header may name them; None where the weights are no such file
    """
    names = config.weights_classes or _names_in(path)
    if not names and num_classes == len(COCO_CLASSES):
        names = COCO_CLASSES
    return names if len(names) == num_classes else ()


def _names_in(path: Path | None) -> tuple[str, ...]:
    """Return the class names of a directory or in the header of a weights file; none in files of other programs."""
    if path is None:
        return ()
    if is_weights_directory(path):
        return directory_class_names(path)
    try:
        names = json.loads(read_metadata(path).get(_HEADER, "[]"))
    except (CheckpointError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def class_names_in(adapter: Path) -> tuple[str, ...]:
    """Return the classes that a run's adapter file names."""
    names = dict(peft.describe(adapter).metadata).get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"`{adapter}` must name its classes, as the files of `vispeft train` do, but does not. "
            "For a file of `vispeft.save_adapter`, use `vispeft.load_adapter`."
        )
    return tuple(names)


def with_kept_classes(coco_set: CocoSet, kept: Sequence[str]) -> CocoSet:
    """Return a set that lists the kept classes first, then its own others; `labelled` are those that it listed itself,
    or None where these are all.

    Classes are the same if their names are, in large or small letters; such a class has the set's own name.
    """
    own = {normalised(name): name for name in reversed(coco_set.class_names)}
    names = [name if name in coco_set.class_names else own.get(normalised(name), name) for name in kept]
    # two kept names may differ in capital letters alone
    names = [kept[i] if name in names[:i] else name for i, name in enumerate(names)]
    names += [name for name in coco_set.class_names if name not in names]
    is_thing = {kind.name: kind.is_thing for kind in coco_set.categories}
    # a class that the set does not list has no segments in it
    other = True if any(flag is not None for flag in is_thing.values()) else None
    classes = tuple(Category(index, name, is_thing.get(name, other)) for index, name in enumerate(names))
    matched = match_categories(replace(coco_set, categories=classes), coco_set)
    labelled = tuple(index for index, name in enumerate(names) if name in coco_set.class_names)
    return replace(matched, labelled=labelled if len(labelled) < len(names) else None)


def add_named_classes(model: SegmentationModel, kept: Sequence[str], names: Sequence[str]) -> None:
    """Add the classes of `names` behind the kept ones, in place; each starts from the class with the nearest name.

    A class without a near name starts from the mean of all. names: of all classes; the kept ones come first
    """
    add_classes(model, model.class_rows(), [nearest_class(name, kept) for name in names[len(kept) :]])


@dataclass(frozen=True)
class PinnedRows:
    """Rows of the class head that training must leave as they are: those of classes without labels, and "no object".

    rows: indices and values of the pinned rows by the tensor's name
    """

    model: SegmentationModel
    rows: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: SegmentationModel, labelled: Sequence[int]) -> PinnedRows:
        """Return the rows as the weights brought them. model: before any training"""
        rows, head = {}, model.class_rows()
        parameters = dict(model.named_parameters())
        for name in head.tensors():
            # a frozen tensor may have another form
            if name in parameters and parameters[name].requires_grad:
                tensor = parameters[name].detach()
                indices = torch.tensor([i for i in range(len(tensor)) if i not in set(labelled)], dtype=torch.int64)
                rows[name] = (indices, tensor[indices.to(tensor.device)].clone().cpu())
        return cls(model, rows)

    @torch.no_grad()
    def restore(self, step: int, num_steps: int) -> None:
        """Write the rows back, after a step of the optimizer. step, num_steps: not used"""
        for name, (indices, values) in self.rows.items():
            parameter = self.model.get_parameter(name)
            parameter[indices.to(parameter.device)] = values.to(parameter)
