"""Quickstart: the bundled base fine-tuned by four methods on photographs that it has not seen, and a comparison."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vispeft.config import recipe_path
from vispeft.errors import DataError, TrainingError
from vispeft.io.child_processes import start_child
from vispeft.io.json_files import read_json, write_json
from vispeft.io.run_layout import REPORT_FILE, SUMMARY_FILE
from vispeft.report import write_comparison

RECIPES: Mapping[str, str] = {
    "head_only": "bundled_head",
    "lora": "bundled_lora",
    "adapter": "bundled_adapter",
    "full": "bundled_full",
}
_DATA = "data"
_FOLDER = ("train.json", "val.json", "images")
_MARKER = ".quickstart"
_INTERRUPTED = 130


@dataclass(frozen=True)
class QuickstartSettings:
    """Size of the quickstart, whose defaults take at most six minutes on two cores.

    data: folder with train.json, val.json and images/; None: the photographs that come with the package
    image_size: side of the network input in pixels
    """

    data: Path | None = None
    image_size: int = 128
    steps: int = 100
    batch_size: int = 4


def photographs() -> Path:
    """Return the folder of the photographs that come with the package."""
    return Path(str(resources.files("vispeft") / "assets" / "photographs"))


def run_quickstart(
    out: Path, settings: QuickstartSettings, say: Callable[[str], None]
) -> Mapping[str, Mapping[str, Any]] | None:
    """Train and evaluate every recipe, and return the summaries by method name; None after Ctrl-C.

    The summaries are written to `out/summary.json`, and the comparison to `out/report.html`. The photographs of the
    package are copied to `out/data`.

    say: receives messages on the progress, one line at a time

    Raises DataError where the folder of the data lacks one of its files, or lies in `out`.
    """
    data = settings.data or photographs()
    _check_folder(data)
    if data.resolve().is_relative_to(out.resolve()):
        raise DataError(f"`{data}` lies in `{out}`, which the quickstart replaces. Give another --out.")
    _prepare(out)
    if settings.data is None:
        data = Path(shutil.copytree(data, out / _DATA))
        say(f"Copied photographs that the base has not seen to {data}")
    summaries = {}
    for number, name in enumerate(RECIPES, start=1):
        say(f"{number}/{len(RECIPES)} {name}: {settings.steps} steps")
        if not _train(out, name, settings, data):
            return None
        summaries[name] = read_json(out / name / SUMMARY_FILE)
    write_json(out / SUMMARY_FILE, {"runs": summaries}, raises=TrainingError, indent=1)
    write_comparison({name: out / name for name in RECIPES}, out / REPORT_FILE)
    return summaries


def _check_folder(data: Path) -> None:
    missing = [name for name in _FOLDER if not (data / name).exists()]
    if missing:
        raise DataError(f"`{data}` must hold train.json, val.json and images, but has no {' and no '.join(missing)}.")


def _train(out: Path, name: str, settings: QuickstartSettings, data: Path) -> bool:
    """Run `vispeft train` in its own process, so that its memory is freed. Return False after Ctrl-C."""
    images = json.dumps(str(data / "images"))
    overrides = [
        f"data.train.annotations={json.dumps(str(data / 'train.json'))}",
        f"data.train.images={images}",
        f"data.val.annotations={json.dumps(str(data / 'val.json'))}",
        f"data.val.images={images}",
        f"model.image_size={settings.image_size}",
        f"train.steps={settings.steps}",
        f"train.eval_every={settings.steps}",
        f"train.batch_size={settings.batch_size}",
        "train.device=cpu",
        # loading small images takes less time than a loader process takes from the training
        "train.workers=0",
    ]
    words = ["train", str(recipe_path(RECIPES[name])), *overrides, "--out", str(out / name)]
    with start_child(words, stdout=subprocess.DEVNULL) as child:
        try:
            status = child.wait()
        except KeyboardInterrupt:
            # it gets Ctrl-C too, and stops after its step
            child.wait()
            return False
    if status not in (0, _INTERRUPTED):
        raise TrainingError(f"The run `{name}` failed with status {status}; its messages are above.")
    return status == 0


def _prepare(out: Path) -> None:
    """Remove the files of an earlier quickstart from `out`; a folder with other files is an error."""
    if out.exists() and not (out / _MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"`{out}` exists already and is no folder of a quickstart. Give another --out.")
    for name in (_DATA, *RECIPES):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (SUMMARY_FILE, REPORT_FILE):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).write_text("Made by `vispeft quickstart`, which replaces this folder when it runs again.\n")
