"""Checkpoints for --resume: everything that training changed, written atomically. The base is not included."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.io.atomic import remove_partials, replacing

_FORMAT = 1


@dataclass
class Counters:
    """Progress of a run, updated by the loop.

    step: optimizer steps done
    best_step, best_metrics: of the best evaluation so far; -1 and empty before the first
    evaluations_since_best: for early stopping
    is_evaluation_due: the run was stopped between a step and its evaluation
    has_checked_gradients: every trainable parameter is known to get a gradient
    loss_sums, num_summed: sums of the losses, and their number, since the last log line
    num_skipped: steps in a row that loss scaling (fp16) skipped
    train_seconds, evaluate_seconds: over all sessions of the run
    """

    step: int = 0
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0
    is_evaluation_due: bool = False
    has_checked_gradients: bool = False
    loss_sums: dict[str, float] = field(default_factory=dict)
    num_summed: int = 0
    num_skipped: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def lacks_score(self) -> bool:
        """True while the evaluation after the last step is still due: it was cut off, or weights were kept unscored."""
        return self.is_evaluation_due or (self.best_step >= 0 and not self.best_metrics)


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    tensors: trained parameters and buffers by name
    optimizer, precision: state dicts of the optimizer and of the precision plugin (loss scale)
    ema: state of the averages, or None
    rng: state of the random generators of each process, by rank
    data: values by which the caller of `fit` recognises its data; empty in checkpoints of older versions
    """

    counters: Counters
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    ema: dict[str, Tensor] | None
    rng: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training may change, by name, not copied: trainable parameters and buffers near them.

    Buffers count in a module in train mode that has trainable parameters of its own, or whose parameters, those of
    submodules included, are all trainable. A module in train mode with frozen parameters is only a container.
    """
    tensors: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        if module.training and (own or all(p.requires_grad for p in module.parameters())):
            own |= dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            tensors[f"{module_name}.{name}" if module_name else name] = tensor.detach()
    return tensors


@torch.no_grad()
def restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's tensors into the model, in place, if they are exactly those that it trains."""
    own = trained_tensors(model)
    lacking, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if lacking or unknown or reshaped:
        names = ", ".join(f"`{name}`" for name in (lacking + unknown + sorted(reshaped))[:6])
        raise CheckpointError(
            f"The checkpoint must hold what this run trains, but {len(lacking)} tensors are not in it, {len(unknown)} "
            f"are in it only and {len(reshaped)} have another shape: {names}. "
            "Resume with the configuration that began the run."
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    content = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint)}
    content["counters"] = dataclasses.asdict(checkpoint.counters)
    # a killed run may have left one as large as the checkpoint
    remove_partials(path.parent)
    with replacing(path, CheckpointError) as partial, partial.open("wb") as file:
        _save({"format": _FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())


class _Written:
    """A file that keeps the error of a failed write, because torch replaces it by a message of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write, and keep the error of a failure."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Flush, and keep the error of a failure."""
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def _save(content: Mapping[str, Any], file: BinaryIO) -> None:
    written = _Written(file)
    try:
        torch.save(content, written)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise written.error or OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU."""
    if not path.is_file():
        raise CheckpointError(
            f"`{path}` must be a checkpoint to resume from, but is not there. Train without --resume."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("format")
        if version != _FORMAT:
            raise CheckpointError(f"`{path}` must have checkpoint format {_FORMAT}, but has {version!r}.")
        return Checkpoint(**{**content, "counters": Counters(**content["counters"])})
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        pickle.PickleError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"`{path}` must be a checkpoint of `vispeft train`, but cannot be read: {reason.split('. ')[0]}. "
            "Delete it, and --resume starts from the first step."
        ) from error
