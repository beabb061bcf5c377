"""Run directories and results files, read for a comparison."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vispeft.errors import DataError
from vispeft.evaluation.metrics.coco import evaluate_coco
from vispeft.evaluation.statistics.candidates import read_candidates
from vispeft.evaluation.statistics.compare import compare

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, adversarial_case: Callable[..., Any]) -> MakeRun:
    """Function that makes a finished run directory. keep: share of the detections that it keeps"""
    annotations, results = adversarial_case(1)

    def make(name: str, *, rank: int = 4, seed: int = 0, keep: float = 1.0, shift: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"peft": {"deltas": {"a": {"rank": rank}}}, "train": {"seed": seed, "workers": seed, "lr": 0.1}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        moved = [entry | {"area": entry["area"] + shift} for entry in annotations["annotations"]]
        (folder / "annotations_val.json").write_text(json.dumps(annotations | {"annotations": moved}))
        (folder / "predictions_val.json").write_text(json.dumps(results[: int(len(results) * keep)]))
        summary = {"trainable_params": 100 * rank, "trainable_percent": rank / 10, "adapter_bytes": 2048 + seed}
        (folder / "summary.json").write_text(json.dumps(summary | {"train_seconds": 61}))
        return folder

    return make


def test_read_candidates__metrics_are_those_of_evaluate(make_run: MakeRun) -> None:
    folder = make_run("a", keep=0.7)
    candidate_set = read_candidates([folder, make_run("b", rank=8)])
    found = compare([one.entry for one in candidate_set.candidates], num_resamples=100)
    expected = evaluate_coco(folder / "annotations_val.json", folder / "predictions_val.json").segm["AP"]
    assert found.results[0].estimate.value == pytest.approx(expected, abs=1e-12)
    assert [one.trainable_params for one in found.results] == [400, 800]


def test_read_candidates__runs_that_differ_in_the_seed_are_one_configuration(make_run: MakeRun) -> None:
    runs = [make_run(f"lora-s{seed}", seed=seed, keep=1 - seed / 10) for seed in range(3)] + [make_run("other", rank=8)]
    candidate_set = read_candidates(runs)
    assert [(one.entry.name, len(one.entry.runs)) for one in candidate_set.candidates] == [("lora", 3), ("other", 1)]
    assert candidate_set.candidates[0].mean("adapter_bytes") == 2049
    apart = read_candidates(runs, is_grouped=False)
    assert [one.entry.name for one in apart.candidates] == ["lora-s0", "lora-s1", "lora-s2", "other"]


def test_read_candidates__a_key_of_a_later_version_does_not_part_runs(make_run: MakeRun) -> None:
    runs = [make_run("lora-s0"), make_run("lora-s1", seed=1)]
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    config["train"]["regions"] = None
    config["peft"]["deltas"]["a"]["new"] = None
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(read_candidates(runs).candidates) == 1


def test_read_candidates__the_same_seed_twice_is_not_two_seeds(make_run: MakeRun) -> None:
    candidate_set = read_candidates([make_run("one"), make_run("two")])
    assert [len(one.entry.runs) for one in candidate_set.candidates] == [1, 1]


def test_read_candidates__names_are_unique(make_run: MakeRun) -> None:
    candidate_set = read_candidates([make_run("x/lora"), make_run("y/lora", rank=8)])
    first, second = (one.entry.name for one in candidate_set.candidates)
    assert (first.endswith("x/lora"), second.endswith("y/lora")) == (True, True)


def test_read_candidates__results_files_beside_runs(make_run: MakeRun) -> None:
    folder, other = make_run("a"), make_run("b", keep=0.5)
    candidate_set = read_candidates([folder, other / "predictions_val.json"], folder / "annotations_val.json")
    assert [one.entry.name for one in candidate_set.candidates] == ["a", "predictions_val"]
    assert candidate_set.candidates[1].mean("trainable_params") is None
    with pytest.raises(DataError, match="--annotations must name the annotation file"):
        read_candidates([other / "predictions_val.json"])


def test_read_candidates__boxes_only_compares_boxes(make_run: MakeRun) -> None:
    folder, other = make_run("a"), make_run("b")
    path = other / "predictions_val.json"
    boxes = [{key: item[key] for key in item if key != "segmentation"} for item in json.loads(path.read_text())]
    path.write_text(json.dumps(boxes))
    candidate_set = read_candidates([folder, other], is_grouped=False)
    assert candidate_set.kind == "bbox"
    assert "b: boxes only" in candidate_set.warnings[-1]


def test_read_candidates__annotations_of_boxes_compare_boxes(make_run: MakeRun) -> None:
    folder = make_run("a")
    path = folder / "annotations_val.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    path.write_text(json.dumps(content))
    candidate_set = read_candidates([folder])
    assert candidate_set.kind == "bbox"
    assert "annotations are boxes only" in candidate_set.warnings[-1]
    expected = evaluate_coco(path, folder / "predictions_val.json").bbox["AP"]
    found = compare([one.entry for one in candidate_set.candidates], num_resamples=100)
    assert found.results[0].estimate.value == pytest.approx(expected, abs=1e-12)


def test_read_candidates__warns_that_nothing_was_detected(make_run: MakeRun) -> None:
    candidate_set = read_candidates([make_run("a"), make_run("none", rank=8, keep=0)])
    assert candidate_set.warnings == ("none: an empty list of results; nothing was detected.",)


def test_read_candidates__costs_that_are_no_numbers_are_unknown(make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / "summary.json").write_text('{"trainable_params": "many", "train_seconds": NaN, "adapter_bytes": true}')
    (candidate,) = read_candidates([folder]).candidates
    assert candidate.entry.trainable_params is None
    assert candidate.mean("train_seconds") is None
    assert candidate.mean("adapter_bytes") is None


def test_read_candidates__refuses_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere` does not exist"):
        read_candidates([tmp_path / "nowhere"])


def test_read_candidates__annotations_in_another_order_are_equal(make_run: MakeRun) -> None:
    folder, other = make_run("a"), make_run("b", rank=8)
    path = other / "annotations_val.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert len(read_candidates([folder, other]).candidates) == 2


def test_read_candidates__refuses_other_annotations(make_run: MakeRun) -> None:
    with pytest.raises(DataError, match=r"a/annotations_val.json` and `.*b/annotations_val.json` are different"):
        read_candidates([make_run("a"), make_run("b", shift=1)])


@pytest.mark.parametrize("name", ["config.yaml", "predictions_val.json", "summary.json", "annotations_val.json"])
def test_read_candidates__refuses_an_unfinished_run(name: str, make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"must be a finished run, but has no {name}"):
        read_candidates([folder])


@pytest.mark.parametrize(
    ("name", "text"), [("config.yaml", "a: ["), ("config.yaml", "\0"), ("config.yaml", "3"), ("summary.json", "[]")]
)
def test_read_candidates__refuses_broken_files(name: str, text: str, make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=name) as caught:
        read_candidates([folder])
    assert "\n" not in str(caught.value)
