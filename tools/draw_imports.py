"""Draw the packages of vispeft and their imports as `docs/imports.svg`, from the source code.

    python tools/draw_imports.py

A row is a layer of the import contract in `pyproject.toml`, a box is a package or module with the first sentence of its
docstring, an arrow is an import. An arrow that follows from others (a imports b, b imports c) is left out.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "imports.svg"

WIDTH, MARGIN, BOX_HEIGHT, ROW_HEIGHT, GAP = 1180, 20, 78, 124, 14
MOST_WIDE = 230

Graph = Mapping[str, frozenset[str]]
# left edge, top edge and width in pixels
Box = tuple[float, float, float]


def read_layers() -> list[list[str]]:
    """Return the layers of the import contract, from the top: each a list of packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers: list[str] = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def files_of(package: str) -> list[Path]:
    """Return the Python files of a package or module."""
    base = (ROOT / "kernels" if package.startswith("vispeft_kernels") else ROOT).joinpath(*package.split("."))
    return sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]


def first_sentence(package: str) -> str:
    """Return the first sentence of a package's docstring."""
    files = files_of(package)
    file = next((file for file in files if file.name == "__init__.py"), files[0])
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def imported_modules(file: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                yield from (name.name for name in node.names)
            case ast.ImportFrom(module=str(module)):
                yield from (f"{module}.{name.name}" for name in node.names)


def read_graph(packages: Sequence[str]) -> Graph:
    """Return the packages that each of `packages` imports."""

    def owner(module: str) -> str | None:
        return next((name for name in packages if module == name or module.startswith(f"{name}.")), None)

    found = {
        package: {owner(module) for file in files_of(package) for module in imported_modules(file)} - {None, package}
        for package in packages
    }
    return {package: frozenset(name for name in names if name is not None) for package, names in found.items()}


def reduced(graph: Graph) -> Graph:
    """Return the graph without the arrows that follow from others."""

    def below(name: str) -> frozenset[str]:
        return graph[name].union(*(below(child) for child in graph[name]))

    return {
        name: frozenset(child for child in children if not any(child in below(other) for other in children - {child}))
        for name, children in graph.items()
    }


def place(layers: Sequence[Sequence[str]]) -> dict[str, Box]:
    """Return the box of each package."""
    boxes: dict[str, Box] = {}
    for row, layer in enumerate(layers):
        width = min(MOST_WIDE, (WIDTH - 2 * MARGIN - GAP * (len(layer) - 1)) / len(layer))
        left = (WIDTH - len(layer) * width - (len(layer) - 1) * GAP) / 2
        for column, name in enumerate(layer):
            boxes[name] = (left + column * (width + GAP), MARGIN + row * ROW_HEIGHT, width)
    return boxes


def draw_box(name: str, left: float, top: float, width: float) -> list[str]:
    """Return the SVG elements of one box: its name, and the sentence under it in at most three lines."""
    middle = left + width / 2
    lines = textwrap.wrap(first_sentence(name), int(width / 6.1), max_lines=3, placeholder=" ...")
    return [
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="6"/>',
        f'<text x="{middle:.0f}" y="{top + 19:.0f}" class="name">{escape(name.removeprefix("vispeft."))}</text>',
        *(f'<text x="{middle:.0f}" y="{top + 36 + 14 * i:.0f}">{escape(line)}</text>' for i, line in enumerate(lines)),
    ]


def ports(graph: Graph, boxes: Mapping[str, Box]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the horizontal start and end of each arrow: spread over the box edges so that arrows cross little."""

    def spread(name: str, others: Sequence[str]) -> dict[str, float]:
        left, _, width = boxes[name]
        ordered = sorted(others, key=lambda other: (boxes[other][0] + boxes[other][2] / 2, boxes[other][1]))
        return {other: left + width * (i + 1) / (len(ordered) + 1) for i, other in enumerate(ordered)}

    starts = {name: spread(name, list(children)) for name, children in graph.items()}
    ends = {name: spread(name, [parent for parent in graph if name in graph[parent]]) for name in graph}
    return {(name, child): (starts[name][child], ends[child][name]) for name in graph for child in graph[name]}


def draw_arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return the SVG path from the bottom of one box to the top of another."""
    bend = (y2 - y1) / 2
    return f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{y1 + bend:.0f} {x2:.0f},{y2 - bend:.0f} {x2:.0f},{y2:.0f}"/>'


def draw(layers: Sequence[Sequence[str]]) -> str:
    """Return the whole picture as SVG."""
    boxes = place(layers)
    graph = reduced(read_graph(list(boxes)))
    height = 2 * MARGIN + (len(layers) - 1) * ROW_HEIGHT + BOX_HEIGHT
    arrows = [
        draw_arrow(start, boxes[name][1] + BOX_HEIGHT, end, boxes[child][1] - 5)
        for (name, child), (start, end) in sorted(ports(graph, boxes).items())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            'aria-label="The packages of vispeft and their imports">',
            "<style>text{font:11px sans-serif;text-anchor:middle;fill:#333}.name{font-weight:bold;font-size:14px;"
            "fill:#111}rect{fill:#f4f6fa;stroke:#5b6b8c}path{fill:none;stroke:#8a97b3;marker-end:url(#tip)}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0,0 L8,4 L0,8 z" style="fill:#8a97b3;stroke:none;marker-end:none"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
            *arrows,
            *(line for name, box in boxes.items() for line in draw_box(name, *box)),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(read_layers()), encoding="utf-8")
    print(PICTURE)
