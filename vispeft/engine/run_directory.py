"""A run's directory: paths of its files, and the files written before training starts."""

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
from vispeft.errors import ConfigError, TrainingError
from vispeft.io import run_layout
from vispeft.io.atomic import write_text
from vispeft.io.json_files import write_json
from vispeft.training.arithmetic import describe_arithmetic

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
        return self.root / run_layout.CONFIG_FILE

    @property
    def environment(self) -> Path:
        return self.root / run_layout.ENVIRONMENT_FILE

    @property
    def metrics(self) -> Path:
        return self.root / run_layout.METRICS_FILE

    @property
    def adapter(self) -> Path:
        return self.root / run_layout.ADAPTER_FILE

    @property
    def checkpoint(self) -> Path:
        return self.root / run_layout.CHECKPOINT_FILE

    @property
    def annotations(self) -> Path:
        return self.root / run_layout.ANNOTATIONS_FILE

    @property
    def categories(self) -> Path:
        return self.root / run_layout.CATEGORIES_FILE

    @property
    def predictions(self) -> Path:
        return self.root / run_layout.PREDICTIONS_FILE

    @property
    def inspection(self) -> Path:
        return self.root / run_layout.INSPECTION_FILE

    @property
    def summary(self) -> Path:
        return self.root / run_layout.SUMMARY_FILE

    @property
    def report(self) -> Path:
        return self.root / run_layout.REPORT_FILE

    def begin(self, config: Config, environment: dict[str, Any], annotations: dict[str, Any]) -> None:
        """Make the directory and write the files that are known before the first step."""
        write_text(self.config, dump_config(config), raises=TrainingError)
        write_json(self.environment, environment, raises=TrainingError, indent=1)
        write_json(self.annotations, annotations, raises=TrainingError)

    def load_config(self, overrides: Sequence[str] = ()) -> Config:
        """Return the resolved configuration of a begun or finished run."""
        if not self.config.is_file():
            fault = f"has no {self.config.name}" if self.root.exists() else "does not exist"
            raise ConfigError(f"`{self.root}` must be a run directory, but {fault}. Name one that `train` made.")
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
    """Return the commit of the source tree of this code, with `-dirty` if it was changed; None outside of git."""
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
    """Return the values of nested sections by dotted key, without those that are not set."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value not in ({}, None):
            flat[prefix + key] = value
    return flat
