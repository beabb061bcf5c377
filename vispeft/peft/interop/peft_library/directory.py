"""Files of an adapter directory of the peft library: found on this machine, read and checked for damage."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.io.json_files import UnreadableJsonError, load_json
from vispeft.io.tensors import read_tensors
from vispeft.peft.interop.peft_library.options import Options

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

_PICKLE_FILE = "adapter_model.bin"

# names of adapters that a message lists
_LISTED = 3

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Directory:
    """Content of an adapter directory.

    tensors: by the library's names, without the prefix of the base model
    """

    path: Path
    options: Options
    tensors: Mapping[str, Tensor]


def read_directory(directory: str | os.PathLike[str]) -> Directory:
    """Return the content of a directory, or of a hub name whose files are in the local cache."""
    path = _local(directory)
    options = _read_options(path / CONFIG_FILE)
    tensors = _read_tensors(path)
    # a compiled base has one more name before its own
    names = {name: name.removeprefix(PREFIX).removeprefix("_orig_mod.") for name in tensors}
    return Directory(path, options, {names[name]: tensor for name, tensor in tensors.items()})


def _local(directory: str | os.PathLike[str]) -> Path:
    """Return the directory that holds the configuration."""
    path = Path(directory)
    if path.is_file():
        raise CheckpointError(f"`{path}` is a file, but must be the directory that holds `{CONFIG_FILE}`.")
    if (path / CONFIG_FILE).is_file():
        return path
    if path.is_dir():
        named = sorted(child.parent.name for child in path.glob(f"*/{CONFIG_FILE}"))
        found = f"It has the adapters {', '.join(f'`{name}`' for name in named[:_LISTED])}: pass one of their folders."
        raise CheckpointError(f"`{path}` has no `{CONFIG_FILE}`. {found if named else 'Check the path.'}")
    if _HUB_NAME.fullmatch(name := str(directory)):
        return _cached(name)
    raise CheckpointError(f"`{path}` does not exist. Check the path.")


def _cached(name: str) -> Path:
    """Return the cached files of an adapter on the hub; nothing is downloaded."""
    try:
        found = [
            huggingface_hub.try_to_load_from_cache(name, file) for file in (CONFIG_FILE, TENSOR_FILE, _PICKLE_FILE)
        ]
    except ValueError:
        found = [None]
    if isinstance(found[0], str) and any(isinstance(file, str) for file in found[1:]):
        return Path(found[0]).parent
    raise CheckpointError(
        f"`{name}` is neither a directory nor an adapter in the cache of the Hugging Face hub. Run "
        f"`hf download {name}` first, or check the path."
    )


def _read_options(path: Path) -> Options:
    try:
        values = load_json(path)
    except UnreadableJsonError as error:
        raise CheckpointError(f"`{path}`, a configuration of the peft library, {error.sentence}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"`{path}` must hold a JSON object, but holds {type(values).__name__}.")
    return Options(path, values)


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a directory, from safetensors where it has both kinds of files."""
    if (path / TENSOR_FILE).is_file():
        return read_tensors(path / TENSOR_FILE)[0]
    source = path / _PICKLE_FILE
    if not source.is_file():
        raise CheckpointError(f"`{path}` has neither `{TENSOR_FILE}` nor `{_PICKLE_FILE}`. Is it complete?")
    try:
        # no object of the file runs code
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise errors of any kind
        raise CheckpointError(
            f"`{source}` cannot be read as tensors by name: it is damaged, or holds objects that might run code, which "
            "are not loaded."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"`{source}` must hold tensors by name and nothing else.")
    return {name: tensor.detach() for name, tensor in content.items()}
