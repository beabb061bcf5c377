"""Construction of models of transformers from a directory or a name of the hub."""

from __future__ import annotations

import copy
from typing import Any

from vispeft.errors import ConfigError
from vispeft.models.base import ModelArguments
from vispeft.models.wrappers.kinds import Kind, kind_of
from vispeft.models.wrappers.library import class_of, new_network, read_config, read_network, read_processor
from vispeft.models.wrappers.model import TransformersModel
from vispeft.models.wrappers.weights import fit_class_head


def build_transformers(arguments: ModelArguments) -> TransformersModel:
    """Return a model of transformers with its own weights, or with random ones where `pretrained` is False.

    `backbone` is the directory or the hub's name, `options` are fields of the model's configuration. A class head of
    another size is fitted.

    Raises ConfigError for arguments of our own families, and for a model without class and mask queries.
    """
    for key, is_given in (
        ("backbone_weights", arguments.backbone_weights is not None),
        ("backbone_options", bool(arguments.backbone_options)),
        ("size", arguments.size != "base"),
    ):
        if is_given:
            raise ConfigError(f"`{key}` must be left out with `name: transformers`: the directory decides.")
    source = arguments.backbone
    config = read_config(source, arguments.options)
    class_of(config)
    kind = kind_of(config)
    for key, value in kind.options.items():
        setattr(config, key, value)
    if kind.free_size and arguments.image_size is not None:
        config.image_size = arguments.image_size
    processor = read_processor(source)
    fitted = _with_classes(config, arguments.num_classes)
    if not arguments.pretrained:
        return TransformersModel(new_network(fitted), processor)
    return TransformersModel(_network(source, kind, config, fitted), processor)


def _network(source: str, kind: Kind, config: Any, fitted: Any) -> Any:
    """Return the network of the weights with a class head for the classes of `fitted`."""
    network = read_network(source, config)
    if config.num_labels == fitted.num_labels:
        return network
    return new_network(fitted, fit_class_head(network.state_dict(), kind.class_head, fitted.num_labels))


def _with_classes(config: Any, num_classes: int) -> Any:
    fitted = copy.deepcopy(config)
    if config.num_labels != num_classes:
        fitted.num_labels = num_classes
    return fitted
