import json
import os

import pytest

from vispeft.errors import DataError
from vispeft.evaluation.analysis.evaluate import evaluate_depth
from vispeft.report import error_analysis, write_report
from vispeft.report.error_analysis import look_closely
from vispeft.report.run_files import read_run


@pytest.fixture
def depth(run_dir):
    """What `vispeft evaluate --depth` would write."""
    return evaluate_depth(run_dir / "annotations_val.json", run_dir / "predictions_val.json").to_dict()


def _write_depth(run_dir, content, *, is_newer=True):
    path = run_dir / "depth.json"
    path.write_text(json.dumps(content))
    seconds = (run_dir / "predictions_val.json").stat().st_mtime + (10 if is_newer else -10)
    os.utime(path, (seconds, seconds))


def test_look_closely__gives_what_evaluation_in_depth_gives(run_dir, depth):
    found = look_closely(read_run(run_dir))
    interval = depth["interval"]
    assert (found.interval.value, found.interval.low, found.interval.high) == (
        interval["value"],
        interval["low"],
        interval["high"],
    )
    assert found.threshold == depth["threshold"]
    assert found.boundary_ap == depth["boundary"]["AP"]
    # of two objects one is found, and nothing is near the other
    (missed,) = found.errors
    assert (missed.name, missed.count, missed.share) == ("missed", "1", 1.0)
    assert missed.gain == f"{depth['errors']['gains']['missed']:.3f}"
    assert missed.gain in found.lost_by
    assert [chart.title for chart in found.charts] == ["Precision by recall", "What a score is worth"]
    assert [cell.text for cell in found.categories[0][:2]] == ["disk & <b>box</b>", "2"]


def test_look_closely__rows_of_the_confusion_are_annotated_classes(run_dir):
    table = look_closely(read_run(run_dir)).confusion
    assert list(table.columns) == ["disk & <b>box</b>", "unseen", "missed"]
    assert table.rows[0] == ("disk & <b>box</b>", [(1, 0.5), (0, 0.0), (1, 0.5)])
    assert table.rows[-1][0] == "background"


def test_look_closely__of_many_classes_the_commonest_mistakes_are_listed(run_dir, depth):
    names = [f"class {number}" for number in range(20)]
    counts = [[0] * 21 for _ in range(21)]
    counts[3][4], counts[5][6], counts[7][7], counts[8][20], counts[20][9] = 2, 9, 50, 60, 70
    _write_depth(run_dir, depth | {"confusion": {"names": names, "counts": counts}})
    table = look_closely(read_run(run_dir)).confusion
    assert table.rows == ()
    assert [[cell.text for cell in row] for row in table.mistakes] == [
        ["class 5", "class 6", "9"],
        ["class 3", "class 4", "2"],
    ]
    assert "Classes most often taken for another" in write_report(run_dir).read_text()


@pytest.mark.parametrize(("is_newer", "expected"), [(True, 0.123), (False, 0.9)])
def test_look_closely__reads_depth_json_if_it_is_of_these_predictions(run_dir, depth, is_newer, expected):
    _write_depth(run_dir, depth | {"threshold": 0.123}, is_newer=is_newer)
    assert look_closely(read_run(run_dir)).threshold == pytest.approx(expected)


def test_look_closely__a_file_of_another_kind_is_named(run_dir):
    _write_depth(run_dir, {"interval": 3})
    with pytest.raises(DataError, match=r"depth\.json` is not what `vispeft evaluate --depth` writes"):
        write_report(run_dir)


def test_write_report__of_many_predictions_says_how_to_look_closely(run_dir):
    predictions = json.loads((run_dir / "predictions_val.json").read_text())
    (run_dir / "predictions_val.json").write_text(json.dumps(predictions * (error_analysis.MOST_PREDICTIONS + 1)))
    page = write_report(run_dir).read_text()
    assert "--depth" in page
    assert "What AP is lost by" not in page


def test_write_report__shows_how_sure_its_first_figure_is(run_dir, depth):
    page = write_report(run_dir).read_text()
    interval = depth["interval"]
    assert f"{interval['low']:.3f} to {interval['high']:.3f} (95 % interval over images)" in page
    assert "Predictions are shown from a score of 0.90." in page


def test_write_report__one_evaluation_has_no_curve(make_run, tmp_path):
    once, twice = make_run(tmp_path / "once"), make_run(tmp_path / "twice", scores=(0.1, 0.2))
    assert "Validation</figcaption>" not in write_report(once).read_text()
    assert "Validation</figcaption>" in write_report(twice).read_text()
