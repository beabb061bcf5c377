"""A run's directory: paths of its files, the name of a new one, and the files written before training starts."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vispeft.config import Config, dump_config, load_config
from vispeft.errors import ConfigError, TrainingError, write_text, writing
from vispeft.io.json_files import write_json
from vispeft.training.arithmetic import describe_arithmetic
from vispeft.training.checkpoint import CHECKPOINT_FILE
from vispeft.training.logs import METRICS_FILE, TENSORBOARD_DIR

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "pycocotools",
    "numpy",
    "lightning-fabric",
    "safetensors",
)
# what may differ when a run goes on: where and how long, not what; the number of processes is in the checkpoint
_MAY_CHANGE = {
    *("steps", "epochs", "device", "devices", "precision", "workers"),
    *("eval_every", "log_every", "patience", "feature_cache"),
}


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run under `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.root / CHECKPOINT_FILE

    @property
    def annotations(self) -> Path:
        return self.root / "annotations_val.json"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions_val.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def begin(self, config: Config, environment: dict[str, Any], annotations: dict[str, Any]) -> None:
        """Make the directory and write the files that are known before the first step."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.config, dump_config(config))
        write_json(self.environment, environment, indent=1)
        write_json(self.annotations, annotations)

    def load_config(self, overrides: Sequence[str] = ()) -> Config:
        """The resolved configuration of a finished or begun run."""
        if not self.config.is_file():
            raise ConfigError(
                f"`{self.root}` must be a run directory, but has no config.yaml. Name one that `train` made."
            )
        return load_config(self.config, overrides)

    def check_continues(self, config: Config, *, may_move: Collection[str] = (), others: Sequence[str] = ()) -> None:
        """Refuse to go on with a configuration that would have made another run.

        may_move: further keys that may differ
        others: further differences that were found
        """
        begun = _flat(self.load_config().model_dump(mode="json"))
        wanted = _flat(config.model_dump(mode="json"))
        changed = [
            f"`{key}` was {begun.get(key)!r} and is {wanted.get(key)!r}"
            for key in sorted(begun.keys() | wanted.keys())
            if begun.get(key) != wanted.get(key)
            and key.removeprefix("train.") not in _MAY_CHANGE
            and key not in may_move
        ]
        changed += others
        if changed:
            raise ConfigError(
                f"`{self.root}` must go on as it began, but {'; '.join(changed)}. "
                "Use the same values and files, or train without --resume into another --out."
            )


def new_run_directory(out: Path | None, name: str) -> RunDirectory:
    """A directory that holds no work yet: `out`, or the first free `runs/<name>-<n>`."""
    if out is None:
        number = 1
        while (Path("runs") / f"{name}-{number}").exists():
            number += 1
        return RunDirectory(Path("runs") / f"{name}-{number}")
    if out.exists() and (not out.is_dir() or not _holds_no_work(out)):
        raise TrainingError(f"`{out}` is there already. Give another --out, or go on with it by --resume.")
    return RunDirectory(out)


def _holds_no_work(directory: Path) -> bool:
    """Tell whether a directory is empty, or holds a run that ended before it wrote anything to resume from."""
    begun = RunDirectory(directory)
    before_work = {begun.config, begun.environment, begun.annotations, directory / METRICS_FILE}
    return all(path in before_work or path.name == TENSORBOARD_DIR for path in directory.iterdir())


def begun_run_directory(out: Path | None, name: str) -> RunDirectory:
    """The directory to resume: `out`, or the `runs/<name>-<n>` of the highest number."""
    if out is None:
        numbers = [path.name.removeprefix(f"{name}-") for path in Path("runs").glob(f"{name}-*")]
        highest = max((int(number) for number in numbers if number.isdecimal()), default=None)
        if highest is None:
            raise TrainingError(
                f"There is no run `runs/{name}-<n>` to resume. Name it by --out, or leave out --resume."
            )
        out = Path("runs") / f"{name}-{highest}"
    if not (out / "config.yaml").is_file():
        raise TrainingError(f"`{out}` must be a run directory to resume, but has no config.yaml. Leave out --resume.")
    return RunDirectory(out)


def describe_environment(device: str, seed: int) -> dict[str, Any]:
    """Return versions, device, arithmetic, git revision, seed and command line, which are needed to repeat a run."""
    return {
        "vispeft": metadata.version("vispeft"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "device": device,
        "arithmetic": describe_arithmetic(),
        "git_revision": _git_revision(),
        "seed": seed,
        "command_line": sys.argv,
    }


def _git_revision() -> str | None:
    """Commit of the source tree that this code runs from, with `-dirty` where it was changed; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value not in ({}, None):
            flat[prefix + key] = value
    return flat
