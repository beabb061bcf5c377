from typing import Any

import pytest

from vispeft.errors import ConfigError
from vispeft.sweep.schema import parse_sweep
from vispeft.sweep.space import Space, build_space, describe_point


def space_of(**section: Any) -> Space:
    return build_space(parse_sweep(section))


CONDITIONAL = {
    "variants": {"lora": {"peft.train": ["@heads"]}, "adapter": {}, "head": {}},
    "space": {
        "peft.rank": {"values": [4, 8], "when": {"variant": "lora"}},
        "peft.count": {"low": 1, "high": 3, "when": {"variant": ["adapter", "head"]}},
        "train.clip": {"values": [None, 1.0], "when": {"peft.count": 3}},
    },
}


def test_grid__takes_conditions_into_account_and_the_last_changes_fastest() -> None:
    assert space_of(**CONDITIONAL).grid() == [
        {"variant": "lora", "peft.rank": 4},
        {"variant": "lora", "peft.rank": 8},
        *(
            point
            for variant in ("adapter", "head")
            for point in (
                {"variant": variant, "peft.count": 1},
                {"variant": variant, "peft.count": 2},
                {"variant": variant, "peft.count": 3, "train.clip": None},
                {"variant": variant, "peft.count": 3, "train.clip": 1.0},
            )
        ),
    ]


def test_overrides_of__apply_the_variant_before_the_rest() -> None:
    space = space_of(**CONDITIONAL)
    assert space.overrides_of({"variant": "lora", "peft.rank": 4}) == ['peft.train=["@heads"]', "peft.rank=4"]
    assert space.overrides_of({"variant": "head", "peft.count": 3, "train.clip": None}) == [
        "peft.count=3",
        "train.clip=null",
    ]


def test_overrides_of__labels_of_lists_are_json_text() -> None:
    space = space_of(space={"peft.train": [["@heads"], []], "a": [True, 1, "1"]})
    assert space.grid()[0] == {"peft.train": '["@heads"]', "a": True}
    assert [space.overrides_of(point)[0] for point in space.grid()[::3]] == ['peft.train=["@heads"]', "peft.train=[]"]
    assert [space.overrides_of(point)[1] for point in space.grid()[:3]] == ["a=true", "a=1", 'a="1"']


def test_grid__a_range_with_steps() -> None:
    points = space_of(space={"a": {"low": 0.1, "high": 0.5, "step": 0.2}, "b": {"low": 1, "high": 6, "step": 2}}).grid()
    assert [point["a"] for point in points[::3]] == [0.1, 0.3, 0.5]
    assert [point["b"] for point in points[:3]] == [1, 3, 5]


@pytest.mark.parametrize("entry", [{"low": 0.1, "high": 0.5}, {"low": 1, "high": 8, "log": True}])
def test_grid__needs_values(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`sweep\.space\.a` must be a list of values, or a range with `step`"):
        space_of(space={"a": entry}).grid()


def test_corners__contain_every_value_and_both_ends() -> None:
    corners = space_of(**CONDITIONAL).corners()
    seen = {(name, label) for point in corners for name, label in point.items()}
    assert seen >= {("peft.rank", 4), ("peft.rank", 8), ("peft.count", 1), ("peft.count", 3)}
    assert seen >= {("train.clip", None), ("train.clip", 1.0), ("variant", "head")}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"space": {"a": {"values": [1], "when": {"b": 1}}, "b": [1]}},
            r"`sweep\.space\.a\.when\.b` must name a varied key",
        ),
        ({"space": {"b": [1], "a": {"values": [1], "when": {"b": 2}}}}, "must be one of 1, but is 2"),
        ({"space": {"a b": [1]}}, "`sweep.space.a b` must be a dotted configuration key"),
        ({"space": {"sweep.trials": [1]}}, "must be a key of the configuration outside of `sweep`"),
        ({"variants": {"x": {"a b": 1}}}, r"`sweep\.variants\.x\.a b`"),
    ],
)
def test_build_space__names_the_wrong_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(**section)


def test_describe_point__shows_the_variant_by_its_name() -> None:
    assert describe_point({"variant": "lora", "train.lr": 0.1}) == "lora, train.lr=0.1"
