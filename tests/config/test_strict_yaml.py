"""Strict YAML: values of scalars, and refused texts."""

from pathlib import Path
from typing import Any

import pytest

from vispeft.config.strict_yaml import parse_yaml, read_yaml, write_yaml
from vispeft.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x1f", 31),
        ("true", True),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("'1e-3'", "1e-3"),
        ("{a.b: [1, x]}", {"a.b": [1, "x"]}),
        ("<<", "<<"),
    ],
)
def test_parse_yaml__reads_core_scalars_only(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", ["line 3", "`a`", "twice"]),
        ("a:\n  b: 1\n  b: 1", ["line 3", "`b`", "twice"]),
        ("1: x", ["line 1", "must be text"]),
        ("a: [1", ["not valid YAML", "line 1"]),
        ("a: !!python/object:os.system {}", ["not valid YAML"]),
        ("[" * 5000, ["nested too deeply"]),
    ],
)
def test_parse_yaml__refuses_by_line(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "`x.yaml`")
    assert str(error.value).startswith("`x.yaml`")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_read_yaml__names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml.* does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1\n")
    with pytest.raises(ConfigError, match="must contain a mapping of keys, but contains a list of 1"):
        read_yaml(listed)
    listed.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(listed)


def test_write_yaml__reads_back_the_same() -> None:
    repeated = [1, 2]
    value = {"a": 1e-05, "b": "1e-3", "c": "no", "d": None, "e": repeated, "f": repeated, "g": "12", "h": "ä", "i": ""}
    text = write_yaml(value)
    assert parse_yaml(text, "here") == value
    assert "&" not in text
