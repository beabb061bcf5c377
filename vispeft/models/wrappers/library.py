"""The transformers library and what is read from its model directories and its hub."""

from __future__ import annotations

import contextlib
import importlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from vispeft.errors import CheckpointError, ConfigError

# what the library raises for a place that holds no model, and for files that cannot be read
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError, SafetensorError)


def library() -> Any:
    """Return the transformers library, which is imported here alone. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            "This `name` needs the transformers library, which is not installed. Install it: pip install 'vispeft[hf]'."
        ) from error


def read_config(source: str, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a directory or of a model of the hub, with single fields changed.

    Raises ConfigError for a field that it does not have, CheckpointError where it cannot be read.
    """
    transformers = library()
    with _reading(source), _quiet():
        config = transformers.AutoConfig.from_pretrained(_place(source), trust_remote_code=False)
    unknown = [key for key in options if key not in config.to_dict()]
    if unknown:
        raise ConfigError(f"`options` has no {unknown[0]!r}: the configuration of {source} has no such field.")
    try:
        for key, value in options.items():
            setattr(config, key, value)
    except Exception as error:  # the library's own kinds, which differ between its versions
        raise ConfigError(f"`options.{key}` is not usable: {str(error).strip().splitlines()[-1].strip()}.") from error
    return config


def read_processor(source: str) -> dict[str, Any]:
    """Return the configuration of a model's image processor.

    The processor itself is not built: OneFormer's would download the classes of its data set.
    """
    mixin = importlib.import_module("transformers.image_processing_base").ImageProcessingMixin
    library()
    try:
        with _reading(source), _quiet():
            return dict(mixin.get_image_processor_dict(_place(source))[0])
    except CheckpointError as error:
        if not (Path(source).expanduser() / "config.json").is_file():
            raise
        raise CheckpointError(
            f"`weights` must name a model with its image processor, but {source} has no `preprocessor_config.json`, "
            "which holds its sizes and pixel statistics. Copy the file from the model that this one was made of."
        ) from error


def class_of(config: Any) -> Any:
    """Return the library's model class for a configuration; ConfigError where it has no universal one."""
    mapping = library().MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    if type(config) not in mapping:
        raise ConfigError(
            f"`weights` must name a model of `AutoModelForUniversalSegmentation`, but its type is {config.model_type}, "
            "which has no class and mask queries. Choose a Mask2Former, MaskFormer, OneFormer or EoMT, or a SAM 3 with "
            "`name: sam3`."
        )
    return mapping[type(config)]


def read_network(source: str, config: Any, network_class: Any) -> nn.Module:
    """Return the network of a directory or of a model of the hub, in float32.

    Raises CheckpointError where the weights cannot be read or lack a parameter of the network.
    """
    with _reading(source), _quiet():
        network, info = network_class.from_pretrained(
            _place(source), config=config, output_loading_info=True, trust_remote_code=False
        )
    parameters = {name for name, _ in network.named_parameters()}
    missing = sorted(parameters.intersection(info["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"The weights of {source} lack {', '.join(missing[:3])}{more}. Choose a whole segmentation model, not its "
            "encoder alone."
        )
    return network.float()  # type: ignore[no-any-return]


def read_tokenizer(source: str) -> Any:
    """Return the tokenizer of a directory or of a model of the hub. Raises CheckpointError where there is none."""
    with _reading(source), _quiet():
        return library().AutoTokenizer.from_pretrained(_place(source), trust_remote_code=False)


def new_network(config: Any, network_class: Any, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a network of a configuration, with random weights or with a state that fits."""
    with _quiet():
        network: nn.Module = network_class(config)
    if state is not None:
        network.load_state_dict(dict(state))
    return network


def set_activation_checkpointing(network: Any, enable: bool) -> None:
    """Recompute in backward the activations of the layers for which the library can.

    Raises ConfigError for a network without that.
    """
    if not network.supports_gradient_checkpointing:
        raise ConfigError(f"{network.config.model_type} of transformers has no activation checkpointing.")
    if enable:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        network.gradient_checkpointing_disable()


def _place(source: str) -> str:
    """Return a directory's path, or the hub's name unchanged."""
    path = Path(source).expanduser()
    if path.is_file() or (not path.exists() and (path.is_absolute() or source.startswith((".", "~")))):
        reason = "is a file" if path.is_file() else "does not exist"
        raise CheckpointError(
            f"`weights` must name a directory of transformers or a model of its hub, but {path} {reason}."
        )
    return str(path) if path.is_dir() else source


@contextlib.contextmanager
def _reading(source: str) -> Iterator[None]:
    """Context that turns the library's errors into one sentence."""
    try:
        yield
    except _READ_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if Path(source).expanduser().is_dir():
            raise CheckpointError(
                f"The directory {source} cannot be read as a model of transformers ({reason}). "
                "Write it by `save_pretrained`, or choose another one."
            ) from error
        raise CheckpointError(
            f"The model {source} is not here and could not be downloaded from the hub ({reason}). Check its name and "
            "the network, or name a directory that holds it."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without the library's progress bars and reports, and the retries that its client of the hub reports."""
    logging, hub_logging = library().utils.logging, importlib.import_module("huggingface_hub.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_level = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()
