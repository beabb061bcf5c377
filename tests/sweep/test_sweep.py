from typing import Any

import pytest

from vispeft.errors import ConfigError
from vispeft.sweep import load_sweep

GRID = {"variants": {"heads": {}, "class": {"peft.train": ["@class_head"]}}, "space": {"train.lr": [1e-3, 1e-2]}}


def test_load_sweep__every_run_is_a_configuration(folder: Any) -> None:
    sweep = folder.sweep({**GRID, "seeds": [5, 6]})
    configs = [sweep.config(run) for run in sweep.grid]
    assert [(c.peft.train, c.train.lr, c.train.seed) for c in configs[:3]] == [
        (("@heads",), 1e-3, 5),
        (("@heads",), 1e-3, 6),
        (("@heads",), 1e-2, 5),
    ]
    assert configs[-1].peft.train == ("@class_head",)
    assert sweep.grid[-1].title == "class, train.lr=0.01, seed 6"
    assert (sweep.name, sweep.num_runs) == ("small", 8)


def test_load_sweep__reads_back_what_it_dumps(folder: Any, tmp_path: Any) -> None:
    sweep = folder.sweep({**GRID, "sampler": "tpe", "trials": 3})
    path = tmp_path / "other.yaml"
    path.write_text(sweep.dump())
    again = load_sweep(path)
    assert again == sweep
    assert again.study_name == sweep.study_name


def test_load_sweep__overrides_reach_both_parts(folder: Any) -> None:
    path = folder.write({**GRID, "sampler": "random", "trials": 3})
    sweep = load_sweep(path, ["sweep.trials=5", "train.steps=7", "sweep.sampler=tpe"])
    assert (sweep.settings.trials, sweep.settings.sampler, sweep.num_runs) == (5, "tpe", 5)
    assert sweep.base["train"]["steps"] == 7


def test_identity__depends_on_what_a_sweep_is_and_not_on_who_works_on_it(folder: Any) -> None:
    path = folder.write({**GRID, "sampler": "random", "trials": 3})
    one = load_sweep(path)
    assert load_sweep(path, ["sweep.trials=9", "sweep.workers=4"]).identity == one.identity
    other = load_sweep(path, ["train.steps=9", "sweep.pruner=asha"])
    assert other.identity != one.identity
    assert one.differences(other) == ["sweep.pruner", "train.steps"]
    elsewhere = load_sweep(path, ["sweep.storage='sqlite:///other.db'"])
    assert (elsewhere.identity, one.differences(elsewhere)) == (one.identity, ["sweep.storage"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"space": {"train.lrr": [1]}}, r"cannot run train\.lrr=1: `train\.lrr` is not .* Did you mean `train\.lr`"),
        ({"space": {"train.lr": [0.1, -1]}}, r"train\.lr=-1: `train\.lr` must be above 0"),
        (
            {"variants": {"a": {}, "b": {"peft.trian": []}}},
            r"cannot run b: `peft\.trian` .* Did you mean `peft\.train`",
        ),
        ({"space": {"peft.deltas.@encoder.qkv.rank": [1]}}, "put the pattern in quotes"),
        ({"space": {'peft.deltas."@encoder.qkv".rnk': [1]}}, r"rnk` is not an option of lora"),
        ({"space": {"train.lrr": {"low": 0.1, "high": 1.0}}, "sampler": "tpe", "trials": 2}, "Did you mean `train.lr`"),
        ({"space": {"train.lr": {"low": -1.0, "high": 1.0}}, "sampler": "tpe", "trials": 2}, "must be above 0"),
        ({"space": {"train.lr": [1]}, "storage": "mysql://x/y"}, r"`sweep\.storage` must be sqlite"),
        ({"space": {"train.devices": [1, 2]}}, "`train.devices` must be 1 in a sweep, but is 2"),
        ({"space": {"train.seed": [1, 2]}, "seeds": [1]}, r"`sweep\.seeds` and `sweep\.space\.train\.seed`"),
    ],
)
def test_load_sweep__refuses_before_any_trial_runs(folder: Any, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder.sweep(section)


def test_load_sweep__needs_its_section(folder: Any) -> None:
    with pytest.raises(ConfigError, match="there must be a section `sweep`"):
        load_sweep(folder.write(None))
