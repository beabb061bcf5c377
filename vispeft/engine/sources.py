"""What `vispeft predict` takes: run directories, exported models, and runs on the hub."""

from __future__ import annotations

from pathlib import Path

from vispeft.engine.exported_runs import is_exported, load_exported
from vispeft.engine.saved_runs import LoadedRun, load_run
from vispeft.models.exported.model import ExportedModel

DEFAULT_THRESHOLD = 0.5


def load_source(source: str) -> tuple[LoadedRun, float]:
    """Return the run that a name refers to, and the lowest score of its instances unless another is given.

    source: run directory, file of `vispeft export`, or `hf://user/name`
    """
    path = Path(source).expanduser()
    if is_exported(path):
        run = load_exported(path)
        assert isinstance(run.model, ExportedModel)
        return run, run.model.description.score_threshold
    return load_run(path), DEFAULT_THRESHOLD
