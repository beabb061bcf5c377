"""Construction of models of transformers from a directory or a name of the hub."""

from __future__ import annotations

import copy
from typing import Any

from vispeft.models.base import ModelArguments
from vispeft.models.wrappers.arguments import refuse_arguments_of_own_families
from vispeft.models.wrappers.kinds import kind_of
from vispeft.models.wrappers.library import class_of, new_network, read_config, read_network, read_processor
from vispeft.models.wrappers.model import TransformersModel
from vispeft.models.wrappers.weights import fit_class_head


def build_transformers(arguments: ModelArguments) -> TransformersModel:
    """Return a model of transformers with its own weights, or with random ones where `pretrained` is False.

    `backbone` is the directory or the hub's name, `options` are fields of the model's configuration. A class head of
    another size is fitted.

    Raises ConfigError for arguments of our own families, and for a model without class and mask queries.
    """
    refuse_arguments_of_own_families(arguments, "transformers")
    source = arguments.backbone
    config = read_config(source, arguments.options)
    network_class = class_of(config)
    kind = kind_of(config)
    for key, value in kind.options.items():
        setattr(config, key, value)
    if kind.free_size and arguments.image_size is not None:
        config.image_size = arguments.image_size
    processor = read_processor(source)
    fitted = _with_classes(config, arguments.num_classes)
    if not arguments.pretrained:
        return TransformersModel(new_network(fitted, network_class), processor)
    network = read_network(source, config, network_class)
    if config.num_labels != fitted.num_labels:
        state = fit_class_head(network.state_dict(), kind.class_head, fitted.num_labels)
        network = new_network(fitted, network_class, state)
    return TransformersModel(network, processor)


def _with_classes(config: Any, num_classes: int) -> Any:
    fitted = copy.deepcopy(config)
    if config.num_labels != num_classes:
        fitted.num_labels = num_classes
    return fitted
