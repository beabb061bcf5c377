"""Log of a run: metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from vispeft.errors import TrainingError, writing
from vispeft.io.atomic import write_text
from vispeft.io.metrics_file import read_metrics
from vispeft.io.run_layout import METRICS_FILE, TENSORBOARD_DIR
from vispeft.training.interrupt import delayed_interrupt


class RunLog:
    """Writer of lines such as `{"step": 40, "split": "train", "loss": 3.1}` to a run's metrics.jsonl, each at once.

    start_step: lines of an earlier run after this step are dropped, because they will be written again
    repeats_evaluation: the evaluation after `start_step` is dropped too, because it will be repeated
    is_enabled: False in every process but the first
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start_step: int = 0,
        repeats_evaluation: bool = False,
        use_tensorboard: bool = True,
        is_enabled: bool = True,
    ) -> None:
        self.path = run_dir / METRICS_FILE
        self._board = run_dir / TENSORBOARD_DIR
        self._file = None
        self._writer = None
        if not is_enabled:
            return
        with writing(self.path, TrainingError):
            run_dir.mkdir(parents=True, exist_ok=True)
            keep_lines_until(self.path, start_step, repeats_evaluation=repeats_evaluation)
            self._file = self.path.open("a", encoding="utf-8")
        if use_tensorboard:
            # imported here because it takes a second, also in commands that write no log
            with delayed_interrupt():
                from torch.utils.tensorboard import SummaryWriter

            with writing(self._board, TrainingError):
                self._writer = SummaryWriter(str(self._board), purge_step=start_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one line of metrics after `step` steps. A value that is not finite is written as null."""
        if self._file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            with writing(self.path, TrainingError):
                self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
                self._file.flush()
        if self._writer is not None:
            with writing(self._board, TrainingError):
                for name, value in values.items():
                    self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Close both logs; further calls have no effect."""
        if self._file is not None:
            with writing(self.path, TrainingError):
                self._file.close()
        if self._writer is not None:
            with writing(self._board, TrainingError):
                self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # the error that ended the run must not be replaced by one that follows from it
        with contextlib.suppress(TrainingError):
            self.close()


def keep_lines_until(path: Path, step: int, *, repeats_evaluation: bool = False) -> None:
    """Drop the lines of a metrics.jsonl after `step`, atomically.

    repeats_evaluation: drop the evaluation after `step` too
    """
    if not path.exists():
        return
    dropped = step if repeats_evaluation else None
    kept = [
        line
        for line in read_metrics(path)
        if line["step"] <= step and not (line["step"] == dropped and line["split"] == "val")
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept), raises=TrainingError)
