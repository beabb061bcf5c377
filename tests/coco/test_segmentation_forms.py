from typing import Any

import pytest

from vispeft.coco.segmentation_forms import SENTENCES, holds_relative, normalise_segmentation, to_pixels

BOX = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]
PAIRS = [[4.0, 2.0], [20.0, 2.0], [20.0, 12.0], [4.0, 12.0]]
RLE = {"size": [4, 6], "counts": [1, 2, 21]}


@pytest.mark.parametrize(
    ("value", "forms"),
    [
        (BOX, ("flat-polygon",)),
        (PAIRS, ("point-pairs",)),
        ([PAIRS], ("point-pairs",)),
        ([[[point] for point in PAIRS]], ("point-pairs",)),
        ([[PAIRS]], ("point-pairs", "nested-polygon")),
        ([[BOX]], ("nested-polygon",)),
        ([{"x": x, "y": y} for x, y in PAIRS], ("point-objects",)),
        ({"x": BOX[::2], "y": BOX[1::2]}, ("coordinate-lists",)),
        ({"all_points_x": BOX[::2], "all_points_y": BOX[1::2]}, ("coordinate-lists",)),
        ({"type": "Polygon", "coordinates": [PAIRS]}, ("geojson",)),
        ({"type": "MultiPolygon", "coordinates": [[PAIRS]]}, ("geojson",)),
        ([list(map(str, BOX))], ("text-numbers",)),
        (list(map(str, BOX)), ("text-numbers", "flat-polygon")),
        ([BOX, None], ("null-part",)),
        (str([BOX]), ("text-segmentation",)),
        (str(BOX), ("text-segmentation", "flat-polygon")),
    ],
)
def test_straighten__gives_one_flat_polygon_and_names_the_forms(value: Any, forms: tuple[str, ...]) -> None:
    straight = normalise_segmentation(value)
    assert straight.value == [BOX]
    assert set(straight.forms) == set(forms) <= SENTENCES.keys()


@pytest.mark.parametrize(
    ("value", "forms"),
    [
        ({"size": [4, 6], "counts": "[1, 2, 21]"}, ("text-counts",)),
        ({"size": [4, 6], "counts": "1 2 21"}, ("text-counts",)),
        ({"size": [4, 6], "counts": ["1", "2", "21"]}, ("text-in-counts",)),
        ({"size": "[4, 6]", "counts": [1, 2, 21]}, ("text-size",)),
        ({"size": ["4", "6"], "counts": [1, 2, 21]}, ("text-size",)),
        ([RLE], ("listed-rle",)),
        (str(RLE), ("text-segmentation",)),
        ({"size": [4.0, 6.0], "counts": [1.0, 2.0, 21.0]}, ()),
    ],
)
def test_straighten__gives_run_lengths_and_names_the_forms(value: Any, forms: tuple[str, ...]) -> None:
    straight = normalise_segmentation(value)
    assert straight.value == RLE
    assert straight.forms == forms


def test_straighten__takes_the_text_out_of_printed_bytes() -> None:
    straight = normalise_segmentation({"size": [4, 6], "counts": str(b"\\6:V1")})
    assert straight.value == {"size": [4, 6], "counts": "\\6:V1"}
    assert straight.forms == ("bytes-counts",)


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], {}, 5, True, "text"),
        *([BOX], [BOX, BOX], [BOX, []], [BOX[:4]], [[]], [None], [[True] * 6], [[float("nan")] * 6], [[1, 2], [3, 4]]),
        *(RLE, {"size": [4, 6], "counts": "a0"}, {"type": "Polygon", "coordinates": [PAIRS, PAIRS]}),
    ],
)
def test_straighten__leaves_everything_else_as_it_is(value: Any) -> None:
    straight = normalise_segmentation(value)
    assert straight.value == value
    assert straight.forms == ()


def test_holds_relative__only_where_every_polygon_of_a_file_is() -> None:
    relative = [[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], [[[0.0, 0.0], [1.0, 0.0], [1.0, 0.5]]]]
    assert holds_relative(relative)
    assert not holds_relative([*relative, [BOX]])
    assert not holds_relative([[[0, 0, 1, 0, 1, 1]]])
    assert not holds_relative([RLE, None])


def test_scale_up__multiplies_x_by_the_width_and_y_by_the_height() -> None:
    assert to_pixels([[0.5, 0.25, 1.0, 0.0]], 40, 100) == [[50.0, 10.0, 100.0, 0.0]]
