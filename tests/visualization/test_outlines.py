import pytest

from vispeft.visualization import outlines
from vispeft.visualization.outlines import Canvas, Style, draw_outlines, items_of, match


def _entry(left, category_id=1, score=None, side=10):
    polygon = [left, 5, left + side, 5, left + side, 5 + side, left, 5 + side]
    entry = {"category_id": category_id, "segmentation": [[float(value) for value in polygon]]}
    return entry if score is None else entry | {"score": score}


def _items(*entries):
    return items_of(entries, 40, 60)


def test_items_of__best_score_first_without_unreadable_masks():
    items = _items(
        _entry(0, score=0.2), {"category_id": 1, "segmentation": "none", "score": 0.9}, _entry(20, score=0.7)
    )
    assert [item.score for item in items] == [0.7, 0.2]


def test_match__the_best_score_takes_the_object():
    found = match(_items(_entry(0), _entry(30)), _items(_entry(1, score=0.6), _entry(0, score=0.9)))
    assert found.detection_idx == (0, None)
    assert found.iou[0] == pytest.approx(1.0)
    assert found.iou[1] is None
    assert (found.num_true_positives, found.num_false_positives, found.num_false_negatives) == (1, 1, 1)
    assert found.f1 == pytest.approx(0.5)


def test_match__needs_the_class_and_half_of_the_union():
    annotations = _items(_entry(0))
    assert match(annotations, _items(_entry(0, category_id=2, score=0.9))).num_true_positives == 0
    assert match(annotations, _items(_entry(6, score=0.9))).num_true_positives == 0
    assert match((), ()).f1 == 1.0


def test_draw_outlines__in_units_of_the_canvas_large_ones_first():
    items = _items(_entry(0, side=10), _entry(20, side=20))
    styles = [Style("small", "a", 0, True), Style("large", "b", 1, False)]
    drawn, num_left_out = draw_outlines(items, styles, Canvas(120.0, 80.0, 2.0))
    assert [outline.title for outline in drawn] == ["large", "small"]
    assert drawn[1].box == pytest.approx((0, 10, 20, 20), abs=2)
    assert (drawn[0].is_matched, drawn[1].is_matched, num_left_out) == (False, True, 0)
    assert drawn[0].colour != drawn[1].colour


def test_draw_outlines__leaves_out_more_than_a_page_can_hold(monkeypatch):
    monkeypatch.setattr(outlines, "_MAX_CHARACTERS", 60)
    styles = [Style("", "", 0, True)] * 2
    drawn, num_left_out = draw_outlines(_items(_entry(0), _entry(20)), styles, Canvas(60.0, 40.0, 1.0))
    assert (len(drawn), num_left_out) == (1, 1)


def test_items_of__takes_boxes_where_no_entry_has_a_mask():
    box = {"category_id": 1, "bbox": [10, 5, 20, 10], "score": 0.4}
    (item,) = _items(box)
    assert match(_items({**_entry(10), "segmentation": [[10.0, 5, 30, 5, 30, 15, 10, 15]]}), [item]).iou == (1.0,)
    # a mask among them decides for masks
    assert len(_items(box, _entry(0, score=0.5))) == 1
