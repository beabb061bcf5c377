"""Arguments of `build_model` that a directory of transformers leaves no choice in."""

from __future__ import annotations

from vispeft.errors import ConfigError
from vispeft.models.base import ModelArguments


def refuse_arguments_of_own_families(arguments: ModelArguments, name: str) -> None:
    """Raise ConfigError where an argument is given that the directory decides. name: of the family"""
    for key, is_given in (
        ("backbone_weights", arguments.backbone_weights is not None),
        ("backbone_options", bool(arguments.backbone_options)),
        ("size", arguments.size != "base"),
    ):
        if is_given:
            raise ConfigError(f"`{key}` must be left out with `name: {name}`: the directory decides.")
