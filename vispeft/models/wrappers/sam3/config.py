"""Construction of SAM 3 from a directory or a name of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispeft.errors import CheckpointError, ConfigError
from vispeft.io.names import did_you_mean
from vispeft.models.base import ModelArguments
from vispeft.models.wrappers.arguments import refuse_arguments_of_own_families
from vispeft.models.wrappers.library import (
    library,
    new_network,
    read_config,
    read_network,
    read_processor,
    read_tokenizer,
)
from vispeft.models.wrappers.sam3.model import Sam3
from vispeft.models.wrappers.sam3.prompts import PromptWriter
from vispeft.models.wrappers.weights import side_of

_OPTIONS = ("prompts",)


def build_sam3(arguments: ModelArguments) -> Sam3:
    """Return a SAM 3 with its own weights, or with random ones where `pretrained` is False.

    `backbone` is the directory or the hub's name. The only option is `prompts`: texts for classes whose name is not a
    good prompt, by class name. With random weights the classes have placeholders as names until `set_class_names`.

    Raises ConfigError for arguments of our own families, and for a model of another type; CheckpointError where files
    are missing.
    """
    refuse_arguments_of_own_families(arguments, "sam3")
    source, texts = arguments.backbone, _prompts(arguments.options)
    config = _detector_config(source)
    if arguments.image_size is not None:
        _set_side(config, arguments.image_size)
    network_class = library().Sam3Model
    network = (
        read_network(source, config, network_class) if arguments.pretrained else new_network(config, network_class)
    )
    writer = PromptWriter(_tokenizer(source, config), length=config.text_config.max_position_embeddings, texts=texts)
    model = Sam3(network, read_processor(source), writer, num_classes=arguments.num_classes)
    if not arguments.pretrained and not texts:
        model.set_class_names([f"class {index}" for index in range(arguments.num_classes)])
    return model


def num_classes_in(source: Path) -> None:
    """Return None: there is no class head, whatever the directory."""


def image_size_in(source: str) -> int:
    """Return the side of the network input of a directory or a hub model, in pixels."""
    return side_of(_detector_config(source))


def _detector_config(source: str) -> Any:
    """Return the configuration of the model for images, which the hub's models hold beside that of their tracker."""
    config = read_config(source, {})
    if config.model_type == "sam3_video":
        config = config.detector_config
    if config.model_type != "sam3":
        raise ConfigError(
            f"`weights` must name a SAM 3 with `name: sam3`, but its type is {config.model_type}. Choose another "
            "model, or `name: transformers` for one with a class head."
        )
    return config


def _tokenizer(source: str, config: Any) -> Any:
    """Return the tokenizer of the text encoder; CheckpointError for another, such as the library's empty one."""
    tokenizer = read_tokenizer(source)
    if len(tokenizer) != config.text_config.vocab_size:
        raise CheckpointError(
            f"`weights` must name a model with its tokenizer, but that of {source} has {len(tokenizer)} tokens, and "
            f"its text encoder {config.text_config.vocab_size}. Copy the files `tokenizer*` from the model that this "
            "one was made of."
        )
    return tokenizer


def _set_side(config: Any, side: int) -> None:
    patch = config.vision_config.backbone_config.patch_size
    if side % patch:
        raise ConfigError(f"`image_size` must be a multiple of {patch}, the side of a patch, but is {side}.")
    config.image_size = side


def _prompts(options: Mapping[str, Any]) -> dict[str, str]:
    for key in options:
        if key not in _OPTIONS:
            raise ConfigError(f"`options` has no {key!r} with `name: sam3`.{did_you_mean(key, _OPTIONS)}")
    texts = options.get("prompts", {})
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise ConfigError(f"`options.prompts` must map class names to texts, but is {texts!r}.")
    return {str(name): text for name, text in texts.items()}
