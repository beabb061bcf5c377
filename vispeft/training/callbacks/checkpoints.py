"""Checkpoints of a run in progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vispeft.training.checkpoint import save_checkpoint
from vispeft.training.state import RunState


@dataclass(frozen=True)
class CheckpointWriter:
    """Writer of the state of a run, over its last checkpoint.

    every: steps between two checkpoints; None: only when the trainer asks for one
    """

    path: Path
    state: RunState
    every: int | None

    def on_step(self) -> None:
        """Save after a step, if that is due. Every process must call this."""
        if self.every is not None and self.state.counters.step % self.every == 0:
            self.save()

    def save(self) -> None:
        """Save now. Every process must call this; the first one writes."""
        checkpoint = self.state.capture()
        if self.state.fabric.is_global_zero:
            save_checkpoint(self.path, checkpoint)
