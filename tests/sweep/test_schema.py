import pytest

from vispeft.errors import ConfigError
from vispeft.sweep.schema import SweepConfig, parse_sweep

SPACE = {"train.lr": [1e-3, 1e-2]}


def test_parse_sweep__a_list_is_short_for_values() -> None:
    found = parse_sweep({"space": {"a.b": [1, 2], "c": {"values": [[], ["x"]]}}})
    assert found.space["a.b"].values == (1, 2)
    assert found.space["c"].values == ([], ["x"])
    assert found.sampler == "grid"
    assert found.objectives == ("segm/AP",)


def test_parse_sweep__reads_back_what_it_dumps() -> None:
    found = parse_sweep({"space": {"a": {"low": 1, "high": 4, "when": {"b": [True]}}, **SPACE}, "seeds": [1, 2]})
    assert SweepConfig.model_validate_json(found.model_dump_json(exclude_defaults=True)) == found


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], "`sweep` must be a section"),
        ({}, "`sweep.space` or `sweep.variants` must not be empty"),
        ({"space": SPACE, "smapler": "tpe"}, "`sweep.smapler` is not a configuration key. Did you mean"),
        ({"space": {"train.lr": 0.1}}, r"`sweep.space.train.lr` must be a list .* but is 0.1"),
        ({"space": {"train.lr": []}}, "`sweep.space.train.lr` must have at least one value"),
        ({"space": {"train.lr": [1, 1]}}, "no duplicates"),
        ({"space": {"train.lr": {"low": 1}}}, "`sweep.space.train.lr` must have a number as `high`, but it is empty"),
        ({"space": {"train.lr": {"low": 2, "high": 1}}}, "must have `low` below `high`, but they are 2 and 1"),
        ({"space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "`low` above 0 for `log`"),
        ({"space": {"train.lr": {"low": 1, "high": 2, "step": 0.5}}}, "a whole number as `step`"),
        (
            {"space": {"train.lr": {"lo": 1, "high": 2}}},
            r"`sweep.space.train.lr.lo` .* Did you mean `sweep.space.train.lr",
        ),
        ({"space": {"train.lr": {"values": [1], "low": 1}}}, "must be a list of values"),
        ({"space": SPACE, "trials": 3}, "`sweep.trials` must be left out for a grid"),
        ({"space": SPACE, "sampler": "tpe"}, "`sweep.trials` must be set"),
        ({"space": SPACE, "seeds": [1, 1]}, "`sweep.seeds` must have at least one seed and no duplicates"),
        ({"space": SPACE, "objectives": ["AP"]}, "`sweep.objectives.0` must be 'segm/AP'"),
        ({"space": SPACE, "workers": 0}, "`sweep.workers` must be at least 1, but is 0"),
        (
            {"space": SPACE, "objectives": ["segm/AP", "train_seconds"], "pruner": "asha"},
            "`sweep.pruner` must be none with several objectives",
        ),
    ],
)
def test_parse_sweep__names_the_wrong_key(section: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sweep(section)
