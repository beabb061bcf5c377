#!/usr/bin/env python
"""Write what `vispeft methods` and `vispeft schema` show, so that these commands need not import torch.

    python tools/write_listing.py

A test compares the file, vispeft/assets/listing.json, with the registries and the configuration's sections.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from vispeft.config import json_schema
from vispeft.models import FAMILIES
from vispeft.peft import METHODS, Method

LISTING = Path(__file__).parents[1] / "vispeft" / "assets" / "listing.json"


def listing() -> dict[str, Any]:
    """Return the methods, the model families and the schema of a configuration."""
    return {
        "methods": [_method_row(name, kind) for name, kind in METHODS.items()],
        "families": [[name, ", ".join(family.sizes)] for name, family in FAMILIES.items()],
        "schema": json_schema(),
    }


def _method_row(name: str, kind: type[Method]) -> list[str]:
    summary = (kind.__doc__ or "").strip().splitlines()[0]
    start = "identity" if kind.is_identity_at_start else "changes the output"
    return [name, ", ".join(_field_text(field) for field in dataclasses.fields(kind)), start, summary]


def _field_text(field: dataclasses.Field[object]) -> str:
    """Return the name of a method's field, with its default if it has one."""
    has_default = field.default is not dataclasses.MISSING
    return f"{field.name}={field.default!r}" if has_default else field.name


if __name__ == "__main__":
    LISTING.write_text(json.dumps(listing(), indent=1) + "\n")
    print(LISTING)
