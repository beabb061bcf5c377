import json

import pytest

from vispeft.errors import DataError
from vispeft.evaluation.analysis import analyse_results
from vispeft.io.checksums import sources_of
from vispeft.report import error_analysis, write_report
from vispeft.report.error_analysis import error_analysis_of
from vispeft.report.run_contents import read_run


@pytest.fixture
def analysis(run_dir):
    """Content of a file of `vispeft evaluate --analysis`."""
    return analyse_results(run_dir / "annotations_val.json", run_dir / "predictions_val.json").to_dict()


def _write_depth(run_dir, content, *, is_of_run=True):
    files = run_dir / "annotations_val.json", run_dir / "predictions_val.json"
    sources = sources_of(*files) if is_of_run else sources_of(files[1], files[1])
    (run_dir / "analysis.json").write_text(json.dumps({**content, "sources": sources}))


def test_error_analysis_of__equals_the_analysis_of_the_command(run_dir, analysis):
    found = error_analysis_of(read_run(run_dir))
    interval = analysis["interval"]
    assert (found.interval.value, found.interval.low, found.interval.high) == (
        interval["value"],
        interval["low"],
        interval["high"],
    )
    assert found.threshold == analysis["threshold"]
    assert found.boundary_ap == analysis["boundary"]["AP"]
    # one of two objects is detected, and no detection overlaps the other
    (missed,) = found.errors
    assert (missed.name, missed.count, missed.share) == ("missed", "1", 1.0)
    assert missed.gain == f"{analysis['errors']['gains']['missed']:.3f}"
    assert missed.gain in found.summary
    assert [chart.title for chart in found.charts] == ["Precision by recall", "Calibration of scores"]
    assert [cell.text for cell in found.categories[0][:2]] == ["disk & <b>box</b>", "2"]


def test_error_analysis_of__rows_of_the_confusion_matrix_are_annotated_classes(run_dir):
    table = error_analysis_of(read_run(run_dir)).confusion
    assert list(table.columns) == ["disk & <b>box</b>", "unseen", "false negative"]
    assert table.rows[0] == ("disk & <b>box</b>", [(1, 0.5), (0, 0.0), (1, 0.5)])
    assert table.rows[-1][0] == "background"


def test_error_analysis_of__of_many_classes_the_most_frequent_confusions_are_listed(run_dir, analysis):
    names = [f"class {number}" for number in range(20)]
    counts = [[0] * 21 for _ in range(21)]
    counts[3][4], counts[5][6], counts[7][7], counts[8][20], counts[20][9] = 2, 9, 50, 60, 70
    _write_depth(run_dir, analysis | {"confusion": {"names": names, "counts": counts}})
    table = error_analysis_of(read_run(run_dir)).confusion
    assert table.rows == ()
    assert [[cell.text for cell in row] for row in table.confusions] == [
        ["class 5", "class 6", "9"],
        ["class 3", "class 4", "2"],
    ]
    assert "Most frequent confusions" in write_report(run_dir).read_text()


@pytest.mark.parametrize(("is_of_run", "expected"), [(True, 0.123), (False, 0.9)])
def test_error_analysis_of__reads_analysis_json_if_it_is_of_these_files(run_dir, analysis, is_of_run, expected):
    _write_depth(run_dir, analysis | {"threshold": 0.123}, is_of_run=is_of_run)
    assert error_analysis_of(read_run(run_dir)).threshold == pytest.approx(expected)


def test_error_analysis_of__a_file_of_another_kind_is_named(run_dir):
    _write_depth(run_dir, {"interval": 3})
    with pytest.raises(DataError, match=r"analysis\.json` must be a file of `vispeft evaluate --analysis`"):
        write_report(run_dir)


def test_write_report__of_many_predictions_names_the_analysis_command(run_dir):
    predictions = json.loads((run_dir / "predictions_val.json").read_text())
    (run_dir / "predictions_val.json").write_text(json.dumps(predictions * (error_analysis.MOST_PREDICTIONS + 1)))
    page = write_report(run_dir).read_text()
    assert "--analysis" in page
    assert "Errors <span" not in page


def test_write_report__shows_the_interval_of_ap(run_dir, analysis):
    page = write_report(run_dir).read_text()
    interval = analysis["interval"]
    assert f"{interval['low']:.3f} to {interval['high']:.3f} (95 % interval over images)" in page
    assert "Predictions are shown from a score of 0.90." in page


def test_write_report__one_evaluation_has_no_curve(make_run, tmp_path):
    once, twice = make_run(tmp_path / "once"), make_run(tmp_path / "twice", scores=(0.1, 0.2))
    assert "Validation</figcaption>" not in write_report(once).read_text()
    assert "Validation</figcaption>" in write_report(twice).read_text()
