"""Weights of models of transformers: class heads of another size, and directories to read and to write."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, ConfigError, writing
from vispeft.models.wrappers.library import InputRule, read_config, read_processor


def num_classes_in(source: str | os.PathLike[str]) -> int | None:
    """Return the number of classes of a directory's or a hub model's class head."""
    return int(read_config(str(source), {}).num_labels)


def image_size_in(source: str) -> int | None:
    """Return the longer side of the network input by the image processor, in pixels; None where it names none."""
    config = read_config(source, {})
    if "patch_size" in config.to_dict() and "num_blocks" in config.to_dict():
        # EoMT: positions for one square
        return side_of(config)
    return InputRule.of(read_processor(source)).image_size


def side_of(config: Any) -> int:
    """Return the side of the square input of a configuration, in pixels."""
    size = config.image_size
    if isinstance(size, list | tuple):
        if len(set(size)) > 1:
            raise ConfigError(f"`weights` must name a model for square images, but its `image_size` is {size}.")
        size = size[0]
    return int(size)


def fit_class_head(state: Mapping[str, Tensor], head: str, num_classes: int) -> dict[str, Tensor]:
    """Return the state with class rows for `num_classes` classes.

    Where the number differs, every new class starts with the mean weights of the old ones. Its bias keeps the odds of
    all classes together against "no object", the last row, for features of zero. Equal numbers are left alone. So is
    the loss's weight of each class, which is 1 but for "no object".

    head: name of the module
    """
    fitted = dict(state)
    given = len(state[f"{head}.weight"]) - 1
    if given == num_classes:
        return fitted
    for name in (f"{head}.weight", f"{head}.bias", "criterion.empty_weight"):
        if name not in state:
            continue
        classes, no_object = state[name].float()[:given], state[name].float()[given:]
        if name.endswith(".bias"):
            start = classes.logsumexp(0, keepdim=True) - math.log(num_classes)
        else:
            start = classes.mean(0, keepdim=True)
        fitted[name] = torch.cat((start.expand(num_classes, *start.shape[1:]), no_object))
    return fitted


def write_directory(
    network: nn.Module, processor: Mapping[str, Any], path: Path, *, class_names: Sequence[str]
) -> None:
    """Write a network and its image processor's configuration as a directory that transformers opens.

    class_names: by class index, for the configuration
    """
    if path.is_file():
        raise CheckpointError(f"`{path}` must be a directory for a model of transformers, but is a file.")
    pretrained: Any = network
    pretrained.config.id2label = dict(enumerate(class_names))
    pretrained.config.label2id = {name: index for index, name in enumerate(class_names)}
    with writing(path, CheckpointError):
        path.mkdir(parents=True, exist_ok=True)
        pretrained.save_pretrained(path)
        (path / "preprocessor_config.json").write_text(json.dumps(dict(processor), indent=2) + "\n", encoding="utf-8")
