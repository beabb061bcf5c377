from __future__ import annotations

import json
from pathlib import Path

import pytest

from vispeft.data import read_coco
from vispeft.errors import DataError, TrainingError
from vispeft.quickstart import RECIPES, QuickstartSettings, photographs, run_quickstart
from vispeft.synthetic import write_splits

MOST_BYTES = 3_000_000


def test_photographs__are_a_small_set_without_problems() -> None:
    folder = photographs()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    for split in ("train", "val"):
        coco_set = read_coco(folder / f"{split}.json", folder / "images")
        assert len(coco_set) >= 20
        assert not coco_set.report.warnings


def test_photographs__name_their_licence() -> None:
    assert "CC BY 4.0" in (photographs() / "LICENSE").read_text()


def test_photographs__share_no_image_between_the_splits() -> None:
    names = [
        {image["file_name"] for image in json.loads((photographs() / f"{split}.json").read_text())["images"]}
        for split in ("train", "val")
    ]
    assert not names[0] & names[1]


def test_missing_file__is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must hold train\.json, val\.json and images, but has no train\.json and no val"
    ):
        run_quickstart(tmp_path / "out", QuickstartSettings(data=tmp_path), print)


def test_data_in_the_folder_of_the_runs__is_not_removed(tmp_path: Path) -> None:
    write_splits(tmp_path / "out" / "data", num_train=2, num_val=1, size=64, seed=0)
    (tmp_path / "out" / ".quickstart").write_text("")
    with pytest.raises(DataError, match=r"lies in `.*out`, which the quickstart replaces"):
        run_quickstart(tmp_path / "out", QuickstartSettings(data=tmp_path / "out" / "data"), print)
    assert (tmp_path / "out" / "data" / "train.json").is_file()


def test_other_folder__is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TrainingError, match="is no folder of a quickstart"):
        run_quickstart(tmp_path, QuickstartSettings(), print)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_quickstart__compares_all_recipes(tmp_path: Path) -> None:
    write_splits(tmp_path / "data", num_train=4, num_val=2, size=64, seed=0)
    said: list[str] = []
    settings = QuickstartSettings(data=tmp_path / "data", image_size=64, steps=1, batch_size=2)
    summaries = run_quickstart(tmp_path / "out", settings, said.append)
    assert summaries is not None
    assert list(summaries) == list(RECIPES)
    assert [line.split(":")[0] for line in said] == ["1/4 head_only", "2/4 lora", "3/4 adapter", "4/4 full"]
    percents = {name: summary["trainable_percent"] for name, summary in summaries.items()}
    assert percents["head_only"] < percents["lora"] <= 6
    assert percents["adapter"] <= 6
    assert percents["full"] == 100
    assert (tmp_path / "out" / "report.html").is_file()
