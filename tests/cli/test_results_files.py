"""Invalid results files, given to the commands that score them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vispeft.engine import RunDirectory

Command = Callable[..., tuple[int, str, str]]
Change = Callable[[list[dict[str, Any]]], Any]


def changed(**values: Any) -> Change:
    """Return a function that changes values of the second result."""
    return lambda results: [results[0], results[1] | values, *results[2:]]


HOSTILE: dict[str, tuple[Change, str]] = {
    "cut off": (lambda results: json.dumps(results)[:200], "is not valid JSON"),
    "one result per line": (lambda results: "\n".join(map(json.dumps, results)), "must hold one value"),
    "an object": (lambda results: {"annotations": results}, "must hold a list of COCO results, but holds an object"),
    "score NaN": (changed(score=float("nan")), "result 1 (counted from 0) must have a finite number as `score`"),
    "score as a string": (changed(score="0.9"), "result 1 (counted from 0) must have a finite number as `score`"),
    "unknown image": (changed(image_id=10**6), "is for image id 1000000, which the annotations do not have"),
    "image as a string": (changed(image_id="1"), "result 1 (counted from 0) must have an integer `image_id`"),
    "unknown category": (changed(category_id=10**6), "has category id 1000000, which the annotations do not have"),
    "mask of another size": (
        changed(segmentation={"size": [32, 32], "counts": [1024]}),
        "RLE of size 32x32 for an image of 64x64",
    ),
    "mask that is too short": (changed(segmentation={"size": [64, 64], "counts": [100]}), "do not add up to the 4096"),
    "one box is missing": (changed(bbox=None), "result 1 (counted from 0) has no `bbox`, though others have one"),
}


@pytest.fixture
def results_file(finished: RunDirectory, tmp_path: Path) -> Callable[[Change], Path]:
    """Function that writes the changed results of the finished run."""

    def write(change: Change) -> Path:
        content = change(json.loads(finished.predictions.read_text()))
        path = tmp_path / "results.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_results__are_one_error_of_every_command(
    change: Change, message: str, results_file: Callable[[Change], Path], finished: RunDirectory, command: Command
) -> None:
    path, annotations = results_file(change), ("--annotations", finished.annotations)
    for words in (("evaluate", "--predictions", path), ("compare", finished.predictions, path)):
        status, out, err = command(*words, *annotations)
        assert (status, out, len(err.splitlines())) == (1, "", 1), err
        assert err.startswith(f"error: `{path}`")
        assert message in err


def test_results__refuses_a_missing_file_and_a_folder(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.json", "none.json` "), (tmp_path, "must be a JSON file, but is a folder")):
        status, _, err = command("evaluate", "--predictions", path, "--annotations", finished.annotations)
        assert (status, len(err.splitlines())) == (1, 1)
        assert message in err
    status, _, err = command("compare", tmp_path, "--annotations", finished.annotations)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "must be a finished run" in err


def test_results__empty_lists_have_zero_metrics_and_a_warning(
    results_file: Callable[[Change], Path], finished: RunDirectory, command: Command
) -> None:
    path, annotations = results_file(lambda results: []), ("--annotations", finished.annotations)
    status, out, err = command("evaluate", "--predictions", path, *annotations)
    assert status == 0
    assert "0.000" in out
    assert "warning: The results are an empty list" in err
    status, _, err = command("compare", finished.root, path, *annotations, "--resamples", 100)
    assert status == 0
    assert "warning: results: an empty list of results" in err


def test_results__boxes_alone_are_compared_as_boxes(
    results_file: Callable[[Change], Path], finished: RunDirectory, command: Command
) -> None:
    path = results_file(lambda results: [{key: one[key] for key in one if key != "segmentation"} for one in results])
    annotations = ("--annotations", finished.annotations)
    status, out, err = command("evaluate", "--predictions", path, *annotations)
    assert status == 0
    assert "boxes only" in err
    status, out, err = command("compare", finished.root, path, *annotations, "--resamples", 100)
    assert status == 0
    assert "box AP on 3 images" in out
    assert "but 3 images are too few to distinguish 2 configurations." in out
