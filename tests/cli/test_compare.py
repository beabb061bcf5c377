"""The command `compare`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vispeft.engine import RunDirectory

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rival(finished: RunDirectory, tmp_path: Path) -> Path:
    """A copy of the finished run with half of the results, lower cost and another rank."""
    root = tmp_path / "rival"
    shutil.copytree(finished.root, root)
    config = (root / "config.yaml").read_text()
    (root / "config.yaml").write_text(config.replace("rank: 2", "rank: 1"))
    results = json.loads((root / "predictions_val.json").read_text())
    (root / "predictions_val.json").write_text(json.dumps(results[::2]))
    summary = json.loads((root / "summary.json").read_text())
    (root / "summary.json").write_text(json.dumps(summary | {"trainable_params": 7}))
    return root


def test_compare__help_has_an_example_and_needs_no_torch(command: Command) -> None:
    status, out, _ = command("compare", "--help")
    assert status == 0
    assert "Example: vispeft compare" in " ".join(out.replace("│", " ").split())
    statistics = "vispeft.evaluation.statistics"
    code = f"import sys, {statistics}.candidates, {statistics}.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compare__table_sentence_and_json(
    finished: RunDirectory, rival: Path, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "comparison.json"
    words = ("compare", finished.root, rival, "--json", path, "--resamples", 100, "--metric", "AP50")
    status, out, err = command(*words)
    assert status == 0, err
    assert "mask AP50 on 3 images, 95 % intervals from 100 resamples" in out
    assert "has the highest AP50" in out
    assert "3 images are few" in err
    found = json.loads(path.read_text())
    assert found["metric"] == "AP50"
    summary = json.loads(finished.summary.read_text())
    assert found["results"][0]["estimate"]["value"] == pytest.approx(summary["segm"]["AP50"], abs=1e-12)
    assert [len(one["runs"]) for one in found["results"]] == [1, 1]
    assert found["results"][1]["trainable_params"] == 7


def test_compare__the_same_seed_gives_the_same(finished: RunDirectory, rival: Path, command: Command) -> None:
    words = ("compare", finished.root, rival, "--resamples", 100, "--seed", 3)
    assert command(*words)[1] == command(*words)[1]


def test_compare__refuses_in_one_message(finished: RunDirectory, rival: Path, command: Command) -> None:
    annotations = json.loads((rival / "annotations_val.json").read_text())
    annotations["annotations"].pop()
    (rival / "annotations_val.json").write_text(json.dumps(annotations))
    status, out, err = command("compare", finished.root, rival)
    assert (status, out) == (1, "")
    assert "are different annotations" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["run", "--metric", "AR"], ["run", "--resamples", "5"]], ids=" ".join)
def test_compare__wrong_usage_ends_with_2(words: list[str], command: Command) -> None:
    assert command("compare", *words)[0] == 2
