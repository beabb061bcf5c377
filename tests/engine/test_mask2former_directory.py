"""A directory of transformers' Mask2Former as the base of our own model, and a run merged into such a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, train_run, write_merged
from vispeft.engine.build import build_base, check_weights_files, kept_class_names, size_of, with_class_head_rates
from vispeft.errors import CheckpointError, ConfigError

Directory = Callable[[str], Path]


def configured(tiny: dict[str, Any], directory: Path, **keys: Any) -> dict[str, Any]:
    deltas = {"@encoder.qkv": {"method": "lora", "rank": 2, "parts": "qv"}}
    model = {"name": "mask2former", "weights": str(directory), **keys}
    return {**tiny, "model": model, "peft": {"deltas": deltas, "train": ["@heads"]}}


def test_train_run__starts_from_a_directory_and_merges_into_one(
    tiny: dict[str, Any], tmp_path: Path, transformers_directory: Directory
) -> None:
    transformers = pytest.importorskip("transformers")
    source = transformers_directory("mask2former")
    config = parse_config(configured(tiny, source))
    check_weights_files(config.model)
    assert size_of(config.model) == 64
    # statistics of the image processor
    base = build_base(config, 3)
    assert (base.pixel_mean, base.pixel_std) == ((127.5, 102.0, 76.5), (51.0, 51.0, 63.75))
    directory = RunDirectory(tmp_path / "run")
    result = train_run(config, directory)
    assert result.summary is not None
    assert result.summary["segm"] == evaluate_run(directory.root).segm
    run = load_run(directory.root)
    write_merged(run, tmp_path / "merged")
    write_merged(load_run(directory.root), tmp_path / "merged.safetensors")
    opened = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "merged").eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run.model(x).final.class_logits
        logits = opened(pixel_values=x).class_queries_logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    merged = parse_config(configured(tiny, tmp_path / "merged", keep_classes=True))
    assert kept_class_names(merged.model) == run.class_names
    assert with_class_head_rates(merged, run.class_names).train.regions == {}
    again = parse_config({**tiny, "model": {"weights": str(tmp_path / "merged.safetensors")}})
    for other in (merged, again):
        tensors = build_base(other, len(run.class_names), class_names=run.class_names).state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in run.model.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "mask_dino"}, r"`model\.backbone` must be named, .* give the `model\.name` of the directory"),
        ({"options": {"dim": 64}}, r"`model\.options` must be left out"),
        ({"size": "tiny"}, r"`model\.size` must be left out"),
    ],
)
def test_build_base__refuses_what_the_directory_decides(
    keys: dict[str, Any], message: str, tiny: dict[str, Any], transformers_directory: Directory
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_base(parse_config(configured(tiny, transformers_directory("mask2former"), **keys)), 3)


def test_build_base__takes_more_queries_than_the_directory(
    tiny: dict[str, Any], transformers_directory: Directory
) -> None:
    config = parse_config(configured(tiny, transformers_directory("mask2former"), num_queries=20))
    assert build_base(config, 5).num_queries == 20


def test_check_weights_files__names_a_directory_without_a_model(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a directory without `config\.json`"):
        check_weights_files(parse_config(configured(tiny, tmp_path)).model)


def test_build_base__refuses_a_directory_of_another_model(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(CheckpointError, match="'detr' model, not of mask2former"):
        build_base(parse_config(configured(tiny, tmp_path)), 3)
