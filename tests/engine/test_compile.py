"""Runs with `train.compile`: files, names and results are those of a run without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, train_run
from vispeft.errors import ConfigError
from vispeft.io.json_files import read_json
from vispeft.training import compilation
from vispeft.training.checkpoint import load_checkpoint


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of torch.compile, run without compiled code."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")


def _train(tiny: dict[str, Any], root: Path, *words: str, resume: bool = False) -> RunDirectory:
    directory = RunDirectory(root)
    words = ("train.ema=0.5", "model.activation_checkpointing=true", "train.schedule=constant", *words)
    train_run(parse_config(tiny, [*words]), directory, resume=resume)
    return directory


def test_train_run__compiled_and_resumed_equals_a_run_that_is_not_compiled(
    tiny: dict[str, Any], tmp_path: Path, backend: None
) -> None:
    plain = _train(tiny, tmp_path / "plain", "train.steps=3")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    _train(tiny, tmp_path / "compiled", "train.steps=2", "train.compile=true")
    compiled = _train(tiny, tmp_path / "compiled", "train.steps=3", "train.compile=true", resume=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    ours, theirs = (load_file(directory.adapter) for directory in (compiled, plain))
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        # Adam turns the rounding of a small gradient into a part of a step: no entry on its own, but all together
        assert (ours[name] - tensor).norm() <= 0.02 * tensor.norm() + 1e-6, name
    names = [list(load_checkpoint(directory.checkpoint).tensors) for directory in (compiled, plain)]
    assert names[0] == names[1]
    summary = read_json(compiled.summary)
    assert summary["segm"]["AP"] == pytest.approx(read_json(plain.summary)["segm"]["AP"], abs=1e-3)


def test_train_run__refuses_to_compile_where_nothing_compiles(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: object, inputs: object) -> Any:
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    with pytest.raises(ConfigError, match=r"`train.compile` must be false: .*there is no compiler"):
        train_run(parse_config(tiny, ["train.compile=true"]), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_run__compiles_the_blocks_that_take_kept_features(
    tiny: dict[str, Any], tmp_path: Path, backend: None
) -> None:
    deltas = {"@encoder.qkv[2:]": {"method": "lora", "rank": 2}}
    config = {**tiny, "peft": {"deltas": deltas, "train": ["@heads"]}}
    words = ["train.steps=2", "train.feature_cache=memory", "data.augment.variants=2"]
    plain = _train(config, tmp_path / "plain", *words)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = _train(config, tmp_path / "compiled", *words, "train.compile=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    ours, theirs = (load_file(directory.adapter) for directory in (compiled, plain))
    for name, tensor in theirs.items():
        # Adam turns the rounding of a small gradient into a part of a step: no entry on its own, but all together
        assert (ours[name] - tensor).norm() <= 0.02 * tensor.norm() + 1e-6, name
