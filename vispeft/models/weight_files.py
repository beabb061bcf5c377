"""Reading of weights files, safetensors and pickles without code, and loading of tensors that must fit."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.io.tensors import read_tensors
from vispeft.models.base import SegmentationModel

# torch reads what is no checkpoint as a pickle, with any of these
_READ_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError),
    *(ValueError, OSError, KeyError, IndexError, AttributeError, TypeError),
)
# keys under which training scripts keep the weights, best first
_WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict", "teacher", "student")


def _is_safetensors(path: Path) -> bool:
    """Return True for a file with the header of safetensors, by whatever name: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and not start.startswith(b"PK")


def weights_path(weights: str | Path) -> Path:
    """Return the path of a weights file as a configuration names it."""
    return Path(weights).expanduser()


def require_file(path: Path, key: str) -> None:
    """Raise CheckpointError where there is no weights file. key: argument or configuration key that names it."""
    if not path.is_file():
        raise CheckpointError(
            f"The weights file {path} {'is no file' if path.exists() else 'does not exist'}. "
            f"Put it there, or name its place by `{key}`."
        )


def read_state(path: str | Path, *, key: str = "weights") -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a .pth, .pt or .bin file without code.

    key: name of the argument or configuration key, for errors

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    path = Path(path)
    require_file(path, key)
    try:
        # training scripts leave their arguments beside the tensors
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            # given as a file, since torch goes by the ending of a path
            loaded = read_tensors(path)[0] if _is_safetensors(path) else torch.load(file, "cpu", weights_only=True)
    except _READ_ERRORS as error:
        # torch itself advises to load the file with code execution
        is_pickle = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors, or is no checkpoint" if is_pickle else str(error).split("\n")[0]
        remedy = (
            "Of a model that was saved whole, save `model.state_dict()` instead." if is_pickle else "Is it complete?"
        )
        raise CheckpointError(f"The weights file {path} cannot be read ({reason}). {remedy}") from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise CheckpointError(f"The weights file {path} holds no tensors by name.")
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors by its own names, in place; the first map is adapted from RGB to other channels.

    Raises CheckpointError naming tensors that are missing, unknown or of another shape; the model is unchanged then.

    source: name of the file, for errors
    """
    own = model.state_dict()
    state = _with_input_channels(own, state)
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    for title, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes:", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{source} does not fit the model: it {title} {', '.join(names[:3])}{more}. "
                "Check `backbone`, `size`, `options` and `backbone_options`."
            )
    # only the counters of batch norms may be missing, and those count training steps alone
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, strict=False)


def _with_input_channels(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state with the RGB weights of the first map adapted to the model's channels, as timm does it.

    No other map has three input channels where the model has another number.
    """
    fitted = dict(state)
    for name, tensor in state.items():
        if name not in own or tensor.ndim != 4 or own[name].ndim != 4 or tensor.shape[1] != 3:
            continue
        wanted = own[name].shape[1]
        if wanted != 3 and own[name].shape[2:] == tensor.shape[2:] and len(own[name]) == len(tensor):
            fitted[name] = adapt_input_conv(wanted, tensor)
    return fitted


def load_weights(model: SegmentationModel, path: str | Path) -> None:
    """Load a weights file of a whole model, in place; the model's family knows the names of official checkpoints.

    Raises CheckpointError where the file cannot be read or does not fit; the model is unchanged then.
    """
    model.load_tensors(read_state(path), source=str(path))
