#!/usr/bin/env python
"""Write the table of the studies' results that `vispeft plan` ranks configurations by.

    python tools/study_evidence.py

For each configuration and set: mean mask AP, that of full fine-tuning in the same setting, and their difference. The
values are read from the raw files in docs/study (3 seeds, 192 px).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "vispeft" / "assets" / "study_evidence.json"
SETS = ("nuclei-histo", "fruits-nuts", "facades")


def rows() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    found = []
    for name in SETS:
        path = f"docs/study/study-{name}.json"
        values = _study_values(path)
        found += [_row(variant, name, ap, values["full"], path, 3) for variant, ap in values.items()]
    path = "docs/study/study_placement-nuclei-histo.json"
    full = _study_values("docs/study/study-nuclei-histo.json")["full"]
    found += [_row(variant, SETS[0], ap, full, path, 3) for variant, ap in _study_values(path).items()]
    return [row for row in found if row["variant"] != "full"]


def _study_values(path: str) -> dict[str, float]:
    """Return the mean mask AP of each configuration of a sweep."""
    return {each["name"]: each["estimate"]["value"] for each in _read(path)["comparison"]["results"]}


def _row(variant: str, name: str, ap: float, full: float, source: str, seeds: int) -> dict[str, Any]:
    return {
        "variant": variant,
        "set": name,
        "mask_ap": round(ap, 4),
        "mask_ap_full": round(full, 4),
        "difference": round(ap - full, 4),
        "seeds": seeds,
        "source": source,
    }


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def text() -> str:
    """Return the content of the file."""
    provenance = (
        "Mask AP of fine-tuning the bundled base for 200 steps, mean over the seeds, against full fine-tuning in the "
        "same setting. Made by tools/study_evidence.py from the raw files named in `source`; see docs/study.md."
    )
    return json.dumps({"provenance": provenance, "rows": rows()}, indent=1) + "\n"


if __name__ == "__main__":
    TABLE.write_text(text())
