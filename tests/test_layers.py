"""Imports run one way: the contract in pyproject.toml, kept, and its picture in docs/, up to date."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_imports__run_one_way() -> None:
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports__are_drawn_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = import_module("draw_imports")
    drawn = tool.draw(tool.read_layers())
    assert tool.PICTURE.read_text() == drawn, "run `python tools/draw_imports.py`"


def test_files__stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("vispeft", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
