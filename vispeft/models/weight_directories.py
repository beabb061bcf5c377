"""Directories of transformers with the weights of a model: a configuration, and tensors in one file or in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vispeft.errors import CheckpointError, writing
from vispeft.io.json_files import read_object, write_json
from vispeft.io.tensors import own_copies, write_tensors

CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = "model.safetensors"
_WEIGHTS_NAMES = (_WEIGHTS, "pytorch_model.bin")


def is_weights_directory(path: Path) -> bool:
    """Tell whether a path is a directory with a configuration of transformers."""
    return (path / CONFIG).is_file()


def read_directory_config(path: Path) -> dict[str, Any]:
    """Return the model's configuration. Raises VispeftError where it is damaged."""
    return read_object(path / CONFIG)


def read_directory_processor(path: Path) -> dict[str, Any]:
    """Return the image processor's configuration, empty where the directory has none."""
    return read_object(path / _PROCESSOR) if (path / _PROCESSOR).is_file() else {}


def check_values(config: Mapping[str, Any], wanted: Mapping[str, Any], source: str, *, family: str) -> None:
    """Raise CheckpointError where a configuration has other values than the only ones that a family of ours has.

    source: name of the file, for errors
    """
    for key, value in wanted.items():
        given = config.get(key, value)
        if given != value:
            raise CheckpointError(
                f"`{key}` must be {value!r} in {source}, but is {given!r}: {family} has no such variant here. "
                "Use `name: transformers` with these weights."
            )


def directory_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes by index; none where the configuration has only the library's own labels."""
    names = read_directory_config(path).get("id2label")
    if not isinstance(names, dict) or not all(index.isdigit() for index in names):
        return ()
    if all(str(name).startswith("LABEL_") for name in names.values()):
        return ()
    return tuple(str(names[index]) for index in sorted(names, key=int))


def read_directory(path: Path, read_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a directory.

    read_file: returns the tensors of one of its files

    Raises CheckpointError where it holds no weights.
    """
    for name in _WEIGHTS_NAMES:
        if (path / name).is_file():
            return read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            return {key: value for part in _parts(index) for key, value in read_file(part).items()}
    raise CheckpointError(f"The directory {path} holds no weights: it has neither {' nor '.join(_WEIGHTS_NAMES)}.")


def write_directory(
    path: Path, config: Mapping[str, Any], processor: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a directory: the configurations of the model and of its image processor, and its tensors."""
    if path.is_file():
        raise CheckpointError(f"`{path}` must be a directory for a model of transformers, but is a file.")
    with writing(path, CheckpointError):
        path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / _WEIGHTS, own_copies(tensors), {"format": "pt"})
    write_json(path / _PROCESSOR, dict(processor), raises=CheckpointError)
    write_json(path / CONFIG, dict(config), raises=CheckpointError)


def _parts(index: Path) -> list[Path]:
    """Return the files that an index names. A name is that of a file beside the index."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"The index {index} names no files of weights. Is it complete?")
    return sorted({index.parent / Path(str(name)).name for name in weight_map.values()})
