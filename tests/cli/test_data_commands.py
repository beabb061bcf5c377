"""Commands for data sets."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Command = Callable[..., tuple[int, str, str]]
NASTY = Path(__file__).parents[2].parent / "shared" / "data" / "nasty-coco"


def test_check__accepts_a_good_set(shapes_set: Path, command: Command) -> None:
    status, out, err = command("data", "check", shapes_set / "train.json", "--images", shapes_set / "images")
    assert (status, err) == (0, "")
    assert "6 images" in out


def test_check__refuses_what_training_would_refuse(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    document = json.loads((shapes_set / "train.json").read_text())
    document["annotations"] = []
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(document))
    status, _, err = command("data", "check", empty, "--images", shapes_set / "images")
    assert status == 1
    assert "refused: " in err


def test_check__counts_the_repaired_copy(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    document = json.loads((shapes_set / "train.json").read_text())
    count = len(document["annotations"])
    document["annotations"][0]["segmentation"] = [2, 2, 12, 2, 12, 12, 2, 12]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(document))
    status, _, err = command("data", "check", bad, "--images", shapes_set / "images")
    assert status == 1
    assert f"{count} instances, 0 crowd regions." in err
    for annotation in document["annotations"]:
        del annotation["category_id"]
    bad.write_text(json.dumps(document))
    assert (
        "--fix cannot repair: no annotation has a `category_id`"
        in command("data", "check", bad, "--images", shapes_set / "images")[2]
    )


def test_check__fix_writes_a_copy_that_passes(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    document = json.loads((shapes_set / "train.json").read_text())
    document["annotations"][0]["segmentation"] = []
    bad, fixed = tmp_path / "bad.json", tmp_path / "fixed.json"
    bad.write_text(json.dumps(document))
    status, _, err = command("data", "check", bad, "--images", shapes_set / "images")
    assert status == 0
    assert "annotation 1" in err
    assert command("data", "check", bad, "--images", shapes_set / "images", "--fix", fixed)[0] == 0
    assert command("data", "check", fixed, "--images", shapes_set / "images")[2] == ""


def test_check__offers_fix_only_where_it_repairs(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    document = json.loads((shapes_set / "train.json").read_text())
    path, fixed = tmp_path / "train.json", tmp_path / "fixed.json"
    for change, is_repaired in ((str.upper, True), (lambda name: f"gone-{name}", False)):
        images = [{**image, "file_name": change(image["file_name"])} for image in document["images"]]
        path.write_text(json.dumps({**document, "images": images}))
        status, _, err = command("data", "check", path, "--images", shapes_set / "images")
        assert status == 1
        assert ("--fix FILE` repairs the file as far as possible" in err) is is_repaired
        status, _, _ = command("data", "check", path, "--images", shapes_set / "images", "--fix", fixed)
        assert (status == 0) is is_repaired


def test_check_and_split__take_the_number_of_channels(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    document = json.loads((shapes_set / "train.json").read_text())
    (tmp_path / "images").mkdir()
    for image in document["images"]:
        image["file_name"] = f"{image['id']}.npy"
        np.save(tmp_path / "images" / image["file_name"], np.zeros((64, 64, 5), np.uint8))
    path, fixed = tmp_path / "all.json", tmp_path / "fixed.json"
    path.write_text(json.dumps(document))
    words = (path, "--images", tmp_path / "images")
    assert command("data", "check", *words, "--fix", fixed)[0] == 1
    assert command("data", "split", *words, "--out", tmp_path)[0] == 1
    assert command("data", "check", *words, "--channels", 5, "--fix", fixed)[::2] == (0, "")
    assert json.loads(fixed.read_text())["images"] == document["images"]
    assert command("data", "split", *words, "--channels", 5, "--out", tmp_path)[::2] == (0, "")


def test_check_and_split__take_boxes_alone(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    document = json.loads((shapes_set / "train.json").read_text())
    for number, annotation in enumerate(document["annotations"]):
        # one mask, in a form that is refused where masks are read
        annotation["segmentation"] = [2, 2, 12, 2, 12, 12, 2, 12]
        if number:
            del annotation["segmentation"]
    path, fixed = tmp_path / "all.json", tmp_path / "fixed.json"
    path.write_text(json.dumps(document))
    words = (path, "--images", shapes_set / "images")
    status, _, err = command("data", "check", *words)
    assert status == 1
    assert "(`task: detection` needs none)" in err
    assert command("data", "split", *words, "--out", tmp_path)[0] == 1
    detection = (*words, "--task", "detection")
    assert command("data", "check", *detection)[::2] == (0, "")
    assert command("data", "check", *detection, "--fix", fixed)[::2] == (0, "")
    assert json.loads(fixed.read_text())["annotations"] == document["annotations"]
    assert command("data", "split", *detection, "--out", tmp_path)[::2] == (0, "")
    sides = [json.loads((tmp_path / f"{side}.json").read_text())["annotations"] for side in ("train", "val")]
    assert sorted(sides[0] + sides[1], key=lambda a: a["id"]) == document["annotations"]


# kinds that are refused, and kinds that load without a warning; the others load with one
REFUSED = (
    *("duplicate-category-names", "images-empty-list", "json-truncated", "no-annotations-key", "panoptic-json"),
    *("path-traversal", "size-in-json-differs", "string-image-ids", "unknown-category-id"),
)
WARNED = (
    *("duplicate-annotation-ids", "exact-duplicate-instance", "missing-image-file", "missing-segmentation"),
    *("nan-in-bbox", "polygon-two-points", "rle-size-differs-from-image", "same-file-listed-twice", "truncated-jpeg"),
    "zero-area-instance",
)


def test_check__reports_every_hostile_kind_by_status_and_message(
    command: Command, hostile: ModuleType, tmp_path: Path
) -> None:
    assert {*REFUSED, *WARNED} < hostile.KINDS.keys()
    for kind, change in hostile.KINDS.items():
        made = hostile.sound_set(tmp_path / kind)
        change(made)
        status, _, err = command("data", "check", made.write(), "--images", made.images)
        assert status == (1 if kind in REFUSED else 0), (kind, err)
        assert bool(err) == (kind in REFUSED + WARNED), (kind, err)
        assert "Traceback" not in err, kind
        assert "Unexpected" not in err, kind


@pytest.mark.skipif(not NASTY.exists(), reason="../shared/data/nasty-coco is not here")
def test_check__behaves_as_expected_on_every_nasty_case(command: Command) -> None:
    for case in sorted(path for path in NASTY.iterdir() if (path / "annotations.json").exists()):
        status, _, err = command("data", "check", case / "annotations.json", "--images", case / "images")
        expected = (case / "expect.txt").read_text().split(":")[0]
        assert "Traceback" not in err, case.name
        assert "Unexpected" not in err, case.name
        if expected == "LOAD":
            assert status == 0, (case.name, err)
        elif expected == "REFUSE":
            assert (status, bool(err)) == (1, True), case.name
        elif expected == "WARN":
            assert (status, bool(err)) == (0, True), case.name
        elif "LOAD" not in expected:
            assert err, case.name


def test_stats_show_split_shapes__write_the_printed_files(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    status, out, _ = command("data", "stats", shapes_set / "train.json")
    assert status == 0
    assert "instances" in out
    picture = tmp_path / "data.png"
    words = ("--images", shapes_set / "images", "--out", picture, "--count", 2, "--augmented", 1)
    assert command("data", "show", shapes_set / "train.json", *words)[0] == 0
    assert picture.stat().st_size > 0
    assert command("data", "split", shapes_set / "train.json", "--out", tmp_path / "split")[0] == 0
    assert (tmp_path / "split" / "val.json").exists()
    assert command("data", "shapes", "--out", tmp_path / "new", "--train", 1, "--val", 1, "--size", 64)[0] == 0
    assert (tmp_path / "new" / "train.json").exists()
    status, _, err = command("data", "shapes", "--out", tmp_path / "new", "--domain", "hatch")
    assert status == 1
    assert "hatched" in err


def test_convert__prints_warnings_and_writes_the_file(shapes_set: Path, command: Command, tmp_path: Path) -> None:
    first, *others = sorted(path.stem for path in (shapes_set / "images").iterdir())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{first}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("thing\n")
    words = ("--labels", tmp_path / "labels", "--names", tmp_path / "classes.txt", "--out", tmp_path / "out.json")
    status, _, err = command("data", "convert", "yolo", "--images", shapes_set / "images", *words)
    assert status == 0
    assert err.startswith(f"warning: {others[0]}")
    assert "no label file; used as background." in err
    assert len(json.loads((tmp_path / "out.json").read_text())["annotations"]) == 1
