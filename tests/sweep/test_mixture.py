"""A space of mixtures: for each group of blocks a method with its width, or none."""

import json
from pathlib import Path
from typing import Any

import pytest

from vispeft.config import load_config
from vispeft.models import bundled_path
from vispeft.sweep import SweepDirectory, load_sweep, run_sweep
from vispeft.sweep.checks import check_plans

RECIPE = Path(__file__).parents[2] / "configs" / "sweep_noah.yaml"

needs_bundled = pytest.mark.skipif(not bundled_path().is_file(), reason="the bundled base is not there")


def data_of(shapes_set: Path) -> list[str]:
    return [
        f"data.{split}.{key}={shapes_set / name}"
        for split in ("train", "val")
        for key, name in (("annotations", f"{split}.json"), ("images", "images"))
    ]


@needs_bundled
def test_recipe__every_choice_fits_its_sites() -> None:
    sweep = load_sweep(RECIPE)
    # all first values together, and each of the two others of nine keys
    assert check_plans(sweep) == 1 + 2 * 9


@pytest.mark.slow
@needs_bundled
def test_recipe__runs_and_gives_configurations_of_the_chosen_deltas(shapes_set: Path, tmp_path: Path) -> None:
    words = ["sweep.trials=3", "train.steps=2", "train.eval_every=2", "train.batch_size=2", "train.device=cpu"]
    words += ["model.image_size=64", "train.workers=0", "loss.num_points=256", *data_of(shapes_set)]
    result = run_sweep(load_sweep(RECIPE, words), SweepDirectory(tmp_path / "noah"), lambda line: None)
    assert [row.state for row in result.results.rows] == ["complete"] * 3
    chosen = []
    for row in result.results.rows:
        deltas = load_config(Path(row.directory) / "config.yaml").peft.deltas
        labels = {name: label for name, label in row.run.labels.items() if label is not None}
        assert {f'peft.deltas."{pattern}"': fields for pattern, fields in deltas.items()} == {
            name: json.loads(label) for name, label in labels.items()
        }
        summary = json.loads((Path(row.directory) / "summary.json").read_text())
        assert set(summary["methods"]) == {"full", *(fields["method"] for fields in deltas.values())}
        chosen.append(summary["trainable_params"])
    assert len(set(chosen)) == 3
    assert result.results.front


def test_space__null_leaves_a_pattern_without_a_delta(folder: Any) -> None:
    section = {"space": {'peft.deltas."@encoder.qkv"': [None, {"method": "lora", "rank": 3}]}}
    sweep = folder.sweep(section)
    plans = [sweep.config(run).peft.deltas for run in sweep.grid]
    assert [sorted(plan) for plan in plans] == [
        ["@deformable.value_proj"],
        ["@deformable.value_proj", "@encoder.qkv"],
    ]
    assert plans[1]["@encoder.qkv"] == {"method": "lora", "rank": 3}
