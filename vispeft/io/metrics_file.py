"""Reader of metrics.jsonl: one JSON object per line, with the step and the split that its metrics belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; none where there is no file.

    A line that a crash cut off, or that has no step and split, is left out.
    """
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and "split" in line:
            lines.append(line)
    return lines
