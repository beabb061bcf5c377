import xml.etree.ElementTree as ElementTree

import pytest

from vispeft.report.charts import Series, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 200, [0, 50, 100, 150, 200]),
        (3.1, 3.9, [3.2, 3.4, 3.6, 3.8]),
        (0, 1e-5, [0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5]),
        (-0.5, 0.5, [-0.4, -0.2, 0, 0.2, 0.4]),
    ],
)
def test_ticks__are_round_numbers_within(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "points",
    [
        [(1, 5.0)],
        [(1, 5.0), (1, 5.0)],
        [(1, 0.0), (2, 1e9)],
        [(1, -3.0), (100_000, 3.0)],
        [(i, i**2) for i in range(500)],
    ],
)
@pytest.mark.parametrize("from_zero", [False, True])
def test_line_chart__stays_inside_its_frame(points, from_zero):
    markup = line_chart([Series("a & b", points), Series("empty", [])], title="t", from_zero=from_zero)
    chart = ElementTree.fromstring(str(markup))
    (line,) = chart.iter("polyline")
    for pair in line.get("points").split():
        x, y = map(float, pair.split(","))
        assert 46 <= x <= 408
        assert 10 <= y <= 224
    assert [text for text in chart.itertext() if "empty" in text] == []


def test_line_chart__of_nothing_is_nothing():
    assert line_chart([Series("a", [])], title="t") == ""
