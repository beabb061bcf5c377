import pytest

from vispeft.report.charts import (
    Axis,
    Dot,
    Series,
    axis,
    line_chart,
    log_ticks,
    placed_dots,
    thinned,
    ticks,
    value_axis,
)


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
    chart = line_chart([Series("a", points), Series("empty", [])], title="t", from_zero=from_zero)
    (line,) = chart.lines
    for pair in line["points"].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 100
        assert 0 <= y <= 100
    assert len(line["points"].split()) <= 200
    assert all(0 <= place <= 100 for place, _ in [*chart.x.ticks, *chart.y.ticks])
    assert [name for name, _ in chart.legend] == ["a"]


def test_line_chart__without_points_is_none():
    assert line_chart([Series("a", [])], title="t") is None


def test_axis__is_logarithmic_where_values_span_much():
    assert axis([1e4, 3e6], "parameters", may_be_log=True).is_log
    assert not axis([1e4, 3e4], "parameters", may_be_log=True).is_log
    assert not axis([0, 3e6], "parameters", may_be_log=True).is_log
    scale = Axis("", 1, 100, True)
    assert [scale.place(value) for value in (1, 10, 100)] == [0, 50, 100]


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (3e4, 2.9e6), (1, 13), (1e-5, 1e-3)])
def test_log_ticks__are_few_and_within(low, high):
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= value <= high for value in found)


def test_thinned__keeps_few_points_and_the_last():
    points = [(step, step**0.5) for step in range(1000)]
    found = thinned(points, 50)
    assert len(found) == 50
    assert found[-1] == points[-1]
    assert thinned(points[:50], 50) == points[:50]


def test_placed_dots__texts_do_not_overlap_texts_or_dots():
    scale = Axis("", 0, 1)
    dots = [
        Dot(0.5, 0.5, "a", "", text="first"),
        Dot(0.53, 0.5, "b", "", text="second"),
        Dot(0.515, 0.5, "c", "", text="third"),
        Dot(0.02, 0.1, "d", "", text="at the left end"),
        Dot(0.98, 0.1, "e", "", text="at the right end"),
    ]
    placed = placed_dots(dots, scale, scale)
    assert [one["text"] for one in placed] == ["first", "second", "", "at the left end", "at the right end"]
    assert [one["is_left"] for one in placed] == [True, False, False, False, True]


def test_placed_dots__a_phone_has_room_for_fewer_texts():
    scale = Axis("", 0, 1)
    dots = [Dot(x, 0.5, f"{x}", "", text="ten letters") for x in (0.4, 0.54, 0.95)]
    placed = placed_dots(dots, scale, scale)
    assert all(one["text"] for one in placed)
    assert [one["is_roomy"] for one in placed] == [True, True, False]


@pytest.mark.parametrize(
    ("values", "is_log", "expected"),
    [
        ([0, 1, 2, 3, 4], False, [0, 1, 2, 3, 4]),
        ([32, 4, 8, 16, 8], True, [4, 8, 16, 32]),
        ([0, 4, 32], False, [0, 4, 32]),
        ([1, 1], False, [1]),
    ],
)
def test_value_axis__has_ticks_at_the_chosen_values(values, is_log, expected):
    found = value_axis(values, "")
    assert found.is_log == is_log
    assert [text for _, text in found.ticks] == [str(value) for value in expected]
    assert all(0 < place < 100 for place, _ in found.ticks)


def test_value_axis__of_many_values_has_round_ticks():
    assert len(value_axis(range(100), "").ticks) < 10
