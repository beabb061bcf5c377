import pytest

from vispeft.report.formats import NOTHING, byte_size, duration, metric_text, plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.12345, "0.123"), (0, "0.000"), (1, "1.000"), (-1, NOTHING), (None, NOTHING), ("x", NOTHING)],
)
def test_metric_text__undefined_is_a_dash(value, expected):
    assert metric_text(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12, "12 bytes"), (1536, "1.5 kB"), (12.5 * 2**20, "12.5 MB"), (1010 * 2**20, "1,010 MB"), (None, NOTHING)],
)
def test_byte_size__is_in_a_readable_unit(value, expected):
    assert byte_size(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(61.4, "61 s"), (200, "3 min"), (7260, "2 h 01 min"), (None, NOTHING)])
def test_duration__is_in_a_readable_unit(value, expected):
    assert duration(value) == expected


def test_plain__is_one_line():
    assert plain({"a": [1, None], "b": {}}) == f"a 1, {NOTHING}, b {NOTHING}"
