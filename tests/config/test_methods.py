"""Methods in a configuration."""

import sys
from pathlib import Path
from typing import Any

import pytest

from vispeft.config import dump_config, methods_from, parse_config
from vispeft.config.strict_yaml import parse_yaml
from vispeft.errors import ConfigError
from vispeft.peft import Adapter, LoRA


def test_methods_from__gives_the_method() -> None:
    assert methods_from({"method": "lora", "rank": 4, "alpha": 8}, "x") == [LoRA(rank=4, alpha=8)]
    assert methods_from({"method": "adapter", "width": 16, "count": 2}, "x") == [Adapter(width=16, count=2)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 8}, ["`peft.deltas.a.b` must be like", "lora, dora, adapter", "quotes"]),
        ({"method": "lorra", "rank": 8}, ["`peft.deltas.a.b.method`", "`lora`", "'lorra'"]),
        ({"method": ["lora"]}, ["`peft.deltas.a.b.method`"]),
        ({"method": "lora", "rnak": 8}, ["`peft.deltas.a.b.rnak`", "Did you mean `peft.deltas.a.b.rank`"]),
        ({"method": "lora", "rank": 0}, ["`peft.deltas.a.b", "`rank` must be at least 1, but is 0"]),
        ({"method": "lora", "rank": "eight"}, ["`peft.deltas.a.b`: `rank` must be of type int", "'eight'"]),
        ([{"method": "lora", "rank": 1}, {"method": "lroa"}], ["`peft.deltas.a.b.1.method`"]),
        ([], ["`peft.deltas.a.b` must be like"]),
        (3, ["`peft.deltas.a.b` must be like", "but is 3"]),
        ({"method": "lora"}, ["`peft.deltas.a.b`: `lora` needs `rank`"]),
        ({"method": "adapter", "width": 1.5}, ["`peft.deltas.a.b`: `width` must be of type int", "but is 1.5."]),
    ],
)
def test_parse_config__checks_deltas_by_full_path(fields: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"peft": {"deltas": {"a.b": fields}}})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_parse_config__null_is_no_delta_at_a_pattern() -> None:
    deltas = {"a": {"method": "lora", "rank": 4}, "b": None}
    assert parse_config({"peft": {"deltas": deltas}}) == parse_config({"peft": {"deltas": {"a": deltas["a"]}}})
    assert parse_config({"peft": {"deltas": deltas}}, ["peft.deltas.a=null"]).peft.deltas == {}


MY_METHODS = '''
from dataclasses import dataclass
from typing import ClassVar

import vispeft as vp

@dataclass(frozen=True)
class Mine(vp.LoRA):
    """LoRA under another name."""

    name: ClassVar[str] = "mine"

vp.register_method(Mine)
'''


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Python modules, with `config_methods` and `config_broken`; all of it is removed after the test."""
    (tmp_path / "config_methods.py").write_text(MY_METHODS)
    (tmp_path / "config_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("vispeft.peft.registry._registered", {})
    monkeypatch.delitem(sys.modules, "config_methods", raising=False)
    return tmp_path


def test_parse_config__imports_the_modules_before_methods_and_rates(modules: Path) -> None:
    raw = {"train": {"methods": {"mine": {"lr": 0.1}}}, "peft": {"deltas": {"a": {"method": "mine", "rank": 2}}}}
    with pytest.raises(ConfigError, match=r"`peft\.deltas\.a\.method` must be a method.*`peft\.modules`"):
        parse_config(raw)
    config = parse_config(raw, ["peft.modules=[config_methods]"])
    assert config.train.methods["mine"].lr == 0.1
    assert methods_from(config.peft.deltas["a"], "x")[0].to_dict()["method"] == "mine"
    assert parse_config(parse_yaml(dump_config(config), "dumped")) == config


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config_lacking.methods", "ModuleNotFoundError: No module named 'config_lacking'"),
        ("config_broken", "ZeroDivisionError: division by zero"),
        ("", "ValueError: Empty module name"),
    ],
)
def test_parse_config__names_a_module_that_cannot_be_imported(modules: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^`peft.modules` names `{name}`, which cannot be imported: {reason}"):
        parse_config({"peft": {"modules": [name]}})
