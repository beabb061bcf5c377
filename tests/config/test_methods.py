"""Methods as a configuration describes them."""

from typing import Any

import pytest

from vispeft.config import methods_from, parse_config
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
