"""Place of downloaded files, and offline mode."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

OFFLINE_VARIABLES = ("VISPEFT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "on", "yes", "true"}


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of downloads: `VISPEFT_CACHE`, or `vispeft` in `XDG_CACHE_HOME`, or in `~/.cache`."""
    if environment.get("VISPEFT_CACHE"):
        return Path(environment["VISPEFT_CACHE"]).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vispeft"


def hub_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in which huggingface_hub keeps files: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or its default."""
    if environment.get("HF_HUB_CACHE"):
        return Path(environment["HF_HUB_CACHE"]).expanduser()
    if environment.get("HF_HOME"):
        return Path(environment["HF_HOME"]).expanduser() / "hub"
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def offline_variable(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the environment variable that forbids the network; None where it is allowed."""
    return next((name for name in OFFLINE_VARIABLES if environment.get(name, "").lower() in _TRUE), None)


def request_offline_libraries() -> None:
    """Set `HF_HUB_OFFLINE` where `VISPEFT_OFFLINE` is set, before the libraries that read it are imported."""
    if offline_variable() == OFFLINE_VARIABLES[0]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
