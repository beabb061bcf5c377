"""`key=value` overrides of the command line."""

import pytest

from vispeft.config.overrides import Override, apply_overrides, parse_override
from vispeft.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("train.lr=1e-3", ("train", "lr"), 1e-3),
        ("model.weights=a=b", ("model", "weights"), "a=b"),
        ("train.clip=", ("train", "clip"), None),
        ("peft.train=[head.**]", ("peft", "train"), ["head.**"]),
        ('peft.deltas."a.[6:].b".rank=4', ("peft", "deltas", "a.[6:].b", "rank"), 4),
        ("peft.deltas.'a.b'={method: lora}", ("peft", "deltas", "a.b"), {"method": "lora"}),
        ("peft.deltas.@encoder.qkv=1", ("peft", "deltas", "@encoder", "qkv"), 1),
        ("peft.deltas.a[6:]=1", ("peft", "deltas", "a[6:]"), 1),
    ],
)
def test_parse_override__path_and_value(word: str, path: tuple[str, ...], value: object) -> None:
    assert parse_override(word) == Override(path, value)


@pytest.mark.parametrize("word", ["train.lr", "=3", "", ".a=1", "a..b=1", 'a."b=1', "--lr"])
def test_parse_override__refuses_what_is_not_an_assignment(word: str) -> None:
    with pytest.raises(ConfigError, match="must be `key=value`"):
        parse_override(word)


def test_parse_override__names_the_key_of_a_bad_value() -> None:
    with pytest.raises(ConfigError, match=r"The value of `train\.lr` is not valid YAML"):
        parse_override("train.lr=[1")


def test_apply_overrides__replaces_without_touching_the_original() -> None:
    raw = {"train": {"lr": 1, "seed": 2}, "peft": {"deltas": {"a": 1}}}
    changed = apply_overrides(raw, [Override(("train", "lr"), 5), Override(("peft", "deltas"), {"b": 2})])
    assert changed == {"train": {"lr": 5, "seed": 2}, "peft": {"deltas": {"b": 2}}}
    assert raw == {"train": {"lr": 1, "seed": 2}, "peft": {"deltas": {"a": 1}}}


@pytest.mark.parametrize(("one", "other"), [("steps", "epochs"), ("epochs", "steps")])
def test_apply_overrides__one_length_clears_the_other(one: str, other: str) -> None:
    changed = apply_overrides({"train": {other: 7}}, [Override(("train", one), 3)])
    assert changed == {"train": {one: 3, other: None}}


def test_apply_overrides__both_lengths_stay_for_the_check() -> None:
    both = [Override(("train", "steps"), 3), Override(("train", "epochs"), 4)]
    assert apply_overrides({}, both) == {"train": {"steps": 3, "epochs": 4}}


def test_apply_overrides__refuses_keys_below_a_value() -> None:
    with pytest.raises(ConfigError, match=r"`train\.steps\.x` cannot be set: `train\.steps` has no keys"):
        apply_overrides({"train": {"steps": 3}}, [Override(("train", "steps", "x"), 1)])
