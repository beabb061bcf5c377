"""The file that `vispeft methods` and `vispeft schema` read says what the packages say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

TOOL = Path(__file__).parents[2] / "tools" / "write_listing.py"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_listing", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_listing__is_up_to_date() -> None:
    module = tool()
    # as JSON, where tuples are lists
    current = json.loads(json.dumps(module.listing()))
    assert json.loads(module.LISTING.read_text()) == current, "run python tools/write_listing.py"
