"""What all pages share: their template environment, the facts of a run, and writing a page whole or not at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vispeft.errors import DataError
from vispeft.report.formats import NOTHING, byte_size, count, duration, figure, formatted, plain


@dataclass(frozen=True)
class Fact:
    """One figure with its name, as a page shows it. note: what it means"""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class NextStep:
    """Something to do now: why, and the command that does it; empty where there is none to give."""

    why: str
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts.

    order: what it is sorted by; None where it has no value
    span: begin, middle and end of an interval that is drawn beside the text, in percent
    """

    text: str
    order: float | str | None = None
    link: str = ""
    span: tuple[float, float, float] | None = None


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Render a template of this package into an HTML file and return its path."""
    environment = Environment(
        loader=PackageLoader("vispeft.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"figure": figure, "count": count}
    text = environment.get_template(template).render(**content)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"`{path}` cannot be written: {error.strerror or error}.") from error
    return path


def run_facts(summary: Mapping[str, Any]) -> list[Fact]:
    """The outcome of a run in the order of interest."""
    segm, bbox = summary.get("segm", {}), summary.get("bbox", {})
    trained = count(summary.get("trainable_params"))
    return [
        Fact("mask AP", figure(segm.get("AP"))),
        Fact("mask AP50", figure(segm.get("AP50"))),
        Fact("box AP", figure(bbox.get("AP"))),
        Fact("trainable", formatted(summary.get("trainable_percent"), "{:.2f} %"), trained),
        Fact("adapter file", byte_size(summary.get("adapter_bytes"))),
        Fact("training time", duration(summary.get("train_seconds"))),
        Fact("peak memory", byte_size(summary.get("peak_memory_bytes"))),
        Fact("steps", formatted(summary.get("steps"), "{:,}")),
        Fact("methods", plain(summary.get("methods", NOTHING))),
        Fact("device", plain(summary.get("device", NOTHING))),
    ]


def environment_facts(environment: Mapping[str, Any]) -> list[Fact]:
    """Where and how a run was made; the command line as one would type it."""
    facts = []
    for name, value in environment.items():
        is_command = name == "command_line" and isinstance(value, list)
        facts.append(Fact(name.replace("_", " "), shlex.join(map(str, value)) if is_command else plain(value)))
    return facts


def link_to(target: Path, page: Path) -> str:
    """The address of a file as seen from a page; empty if the file is not there."""
    return Path(os.path.relpath(target, page.parent)).as_posix() if target.exists() else ""
