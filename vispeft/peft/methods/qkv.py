"""Thirds of a fused query-key-value projection, which methods can adapt one by one."""

from __future__ import annotations

from vispeft.errors import PlanError

# target projections, in the order of the fused projection's rows
PROJECTIONS = "qkv"


def check_parts(parts: str) -> None:
    """Refuse parts that are not some of q, k and v in this order."""
    if "".join(part for part in PROJECTIONS if part in parts) != parts:
        raise PlanError(f"`parts` must be some of q, k, v in this order, each once, but is {parts!r}.")


def part_rows(parts: str, rows: int) -> list[slice]:
    """Return the rows of each target projection; one slice over all rows where no parts are named."""
    if not parts:
        return [slice(0, rows)]
    if rows % len(PROJECTIONS):
        raise PlanError(f"`parts` needs a fused map whose outputs are three equal parts, but this one has {rows}.")
    third = rows // len(PROJECTIONS)
    starts = [PROJECTIONS.index(part) * third for part in parts]
    return [slice(start, start + third) for start in starts]
