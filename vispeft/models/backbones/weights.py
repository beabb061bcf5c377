"""Weights of a backbone alone, from a file, by timm's own conversions and checked to fit."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models.weight_files import read_state

_TIMM_LOGGER = "timm.models._builder"
_LOGGED = re.compile(r"(Missing|Unexpected) keys \((.*?)\)", re.DOTALL)
# wrappers that training scripts leave around a backbone's names
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")


def read_backbone_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a backbone's weights file by timm's names, without the prefixes that training scripts add."""
    state = read_state(path, key="backbone_weights")
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            # beside a backbone there may be a head
            if len(inside) * 2 > len(state):
                state = inside
    return state


def create_with_weights(name: str, path: Path, options: Mapping[str, Any], *, form: Mapping[str, Any]) -> Any:
    """Return a timm model with the weights of a file; timm converts names and resizes position embeddings.

    Classifier and other parts that give no features may be in the file or not. Raises CheckpointError where anything
    else is missing, unknown or of another shape.

    options, form: see `timm_models.create`
    """
    # no number of classes fits: timm then loads what there is and reports the rest
    overlay = {"state_dict": read_backbone_state(path), "num_classes": -1, "source": ""}
    logged: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
    try:
        with _listening(logged):
            body: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **form, **options)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # timm's own error if the model cannot be built at all
        timm.create_model(name, **form, **options)
        raise CheckpointError(f"{_unfit(path, name)}: {unfit_tensor(error)}. {_REMEDY}") from error
    _forget_state(body)
    own = {_top(key) for key in body.state_dict()}
    missing, unknown = (_of_features(logged[kind], own) for kind in ("Missing", "Unexpected"))
    found = [
        f"{verb} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for verb, names in (("lacks", missing), ("has unknown", unknown))
        if names
    ]
    if found:
        raise CheckpointError(f"{_unfit(path, name)}: it {' and '.join(found)}. {_REMEDY}")
    return body


_REMEDY = "Name the backbone that the file was saved from by `backbone`, or another file or `image_size`."


def _unfit(path: Path, name: str) -> str:
    return f"`backbone_weights` {path} does not fit `backbone` {name}"


def unfit_tensor(error: Exception) -> str:
    """Return the first tensor that does not fit, or the first line of another loading error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines if line.startswith("size mismatch")] or lines
    return (details[0] if details else type(error).__name__).rstrip(".")


def _of_features(names: Iterable[str], own: set[str]) -> list[str]:
    return [name for name in names if _top(name) in own and not name.endswith("num_batches_tracked")]


def _top(name: str) -> str:
    """Return the first part of a tensor's name, as before timm wraps and flattens models for features."""
    first = name.removeprefix("model.").split(".")[0]
    return re.sub(r"_\d+$", "", first)


@contextlib.contextmanager
def _listening(logged: dict[str, list[str]]) -> Iterator[None]:
    """Context in which the names that timm's loading reports go to `logged` and are not shown."""

    def take(record: logging.LogRecord) -> bool:
        found = _LOGGED.match(record.getMessage())
        if found is not None:
            logged[found[1]] += found[2].split(", ")
        return found is None and record.levelno >= level

    logger = logging.getLogger(_TIMM_LOGGER)
    level, before = logger.getEffectiveLevel(), logger.level
    logger.addFilter(take)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeFilter(take)


def _forget_state(body: Any) -> None:
    """Release the file's tensors, which timm keeps in its configuration of the weights."""
    for module in body.modules():
        config = module.__dict__.get("pretrained_cfg")
        if isinstance(config, dict):
            config.pop("state_dict", None)
