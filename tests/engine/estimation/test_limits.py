"""Limits of `vispeft plan` as users write them."""

import pytest

from vispeft.engine.estimation.limits import parse_limits
from vispeft.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "share", "count"),
    [("1%", 0.01, None), ("1 %", 0.01, None), ("0.01", 0.01, None), ("200k", None, 200_000), ("150000", None, 150_000)],
)
def test_budget__is_a_share_or_a_number(text: str, share: float | None, count: int | None) -> None:
    limits = parse_limits(text, None, None)
    assert limits.share == (None if share is None else pytest.approx(share))
    assert limits.count == count


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 2**30), ("8GiB", 8 * 2**30), ("1.5 g", 3 * 2**29)])
def test_memory__takes_the_usual_units(text: str, size: int) -> None:
    assert parse_limits(None, text, None).memory == size


@pytest.mark.parametrize(("text", "seconds"), [("20m", 1200), ("20min", 1200), ("1.5 h", 5400), ("90s", 90)])
def test_time__takes_the_usual_units(text: str, seconds: float) -> None:
    assert parse_limits(None, None, text).seconds == seconds


@pytest.mark.parametrize(
    "words",
    [("lots", None, None), ("101%", None, None), ("0", None, None), (None, "8", None), (None, None, "0m")],
    ids=str,
)
def test_nonsense__is_refused_with_an_example(words: tuple[str | None, str | None, str | None]) -> None:
    with pytest.raises(ConfigError, match="such as"):
        parse_limits(*words)
