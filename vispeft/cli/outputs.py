"""Files that commands write beside what they show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer


def check_output(option: str, path: Path | None, inputs: Iterable[Path | None]) -> None:
    """Refuse an output that is one of the files that the command reads, before it does any work."""
    if path is None or not path.is_file():
        return
    for each in inputs:
        if each is not None and each.is_file() and each.samefile(path):
            raise typer.BadParameter(f"{option} is {path}, which the command reads. Give another file.")


def write_output(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the results of a command as JSON, where a file was asked for."""
    if path is not None:
        from vispeft.errors import DataError
        from vispeft.io.json_files import write_json

        write_json(path, content, raises=DataError, indent=1)
