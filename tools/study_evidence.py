#!/usr/bin/env python
"""Write the table of the study's results that `vispeft plan` ranks configurations by.

    python tools/study_evidence.py

For each configuration and set: mean mask AP over the seeds, and that of full fine-tuning in the same sweep. The values
are read from the raw files of configs/study.yaml in docs/study. Configurations that one of the sets lacks are left out,
so that all are means over the same sets.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "vispeft" / "assets" / "study_evidence.json"
SETS = ("desk", "potholes", "animals")


def rows() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    found = [row for name in SETS for row in _rows_of(name)]
    number = Counter(row["variant"] for row in found)
    return [row for row in found if number[row["variant"]] == len(SETS)]


def _rows_of(name: str) -> list[dict[str, Any]]:
    source = f"docs/study/study-{name}.json"
    content = json.loads((ROOT / source).read_text())
    ap = {each["name"]: each["estimate"]["value"] for each in content["comparison"]["results"]}
    seeds = len({trial["seed"] for trial in content["trials"]})
    return [
        {
            "variant": variant,
            "set": name,
            "mask_ap": round(value, 4),
            "mask_ap_full": round(ap["full"], 4),
            "seeds": seeds,
            "source": source,
        }
        for variant, value in ap.items()
        if variant != "full"
    ]


def text() -> str:
    """Return the content of the file."""
    provenance = (
        "Mask AP of fine-tuning the bundled base on 100 images for 200 steps, mean over the seeds, and that of full "
        "fine-tuning in the same sweep. Made by tools/study_evidence.py from the raw files named in `source`; see "
        "docs/study.md."
    )
    return json.dumps({"provenance": provenance, "rows": rows()}, indent=1) + "\n"


if __name__ == "__main__":
    TABLE.write_text(text())
