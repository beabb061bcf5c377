"""Runs over frozen weights in lower precisions: trained, resumed, evaluated, merged; their adapters on other bases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.engine.build import build_base
from vispeft.engine.estimation.estimate import estimate
from vispeft.engine.saved_runs import write_merged
from vispeft.errors import CheckpointError, ConfigError
from vispeft.peft import load_adapter
from vispeft.peft.quantization.maps import QuantizedConv2d, QuantizedLinear

PRECISIONS = ("bf16", "int8", "nf4")
# of the synthetic set
NUM_CLASSES = 4


@pytest.fixture(scope="module", params=PRECISIONS)
def run(request: pytest.FixtureRequest, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run over frozen weights in a lower precision."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / request.param)
    train_run(parse_config(tiny, [f"model.frozen_precision={request.param}"]), directory)
    return directory


def test_build_base__stores_what_is_not_trained_in_a_lower_precision(tiny: dict[str, Any]) -> None:
    for name in PRECISIONS:
        model = build_base(parse_config(tiny, [f"model.frozen_precision={name}"]), NUM_CLASSES)
        (qkv, *_) = (module for key, module in model.named_modules() if key.endswith("attn.qkv"))
        if name == "bf16":
            assert qkv.weight.dtype == qkv.bias.dtype == torch.bfloat16
        else:
            assert type(qkv) is QuantizedLinear
            assert any(type(module) is QuantizedConv2d for module in model.modules())
        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
        assert {norm.weight.dtype for norm in norms} == {torch.float32}
        heads = [p for key, p in model.named_parameters() if "class_head" in key or "class_embed" in key]
        assert all(p.dtype == torch.float32 for p in heads)


def test_train_run__evaluates_to_what_it_reported(run: RunDirectory) -> None:
    summary = json.loads(run.summary.read_text())
    assert evaluate_run(run.root).to_dict()["segm"] == pytest.approx(summary["segm"], abs=1e-9)


def test_train_run__resumes_over_a_lower_precision(run: RunDirectory, tiny: dict[str, Any], tmp_path: Path) -> None:
    name = run.load_config().model.frozen_precision
    words = [f"model.frozen_precision={name}", "train.schedule=constant", "train.warmup=0"]
    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    train_run(parse_config(tiny, words), whole)
    train_run(parse_config(tiny, [*words, "train.steps=2"]), parts)
    train_run(parse_config(tiny, words), parts, resume=True)
    first, second = load_file(whole.adapter), load_file(parts.adapter)
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(ConfigError, match=f"`model.frozen_precision` was '{name}' and is 'fp32'"):
        train_run(parse_config(tiny, [*words[1:], "train.steps=6"]), parts, resume=True)


def test_train_run__writes_no_frozen_weight_and_none_in_half_precision(run: RunDirectory) -> None:
    tensors = load_file(run.adapter)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not [key for key in tensors if key.endswith(("codes", "scales"))]


def test_predict__runs_in_the_precision_of_the_run(run: RunDirectory, shapes_set: Path, tmp_path: Path) -> None:
    files = sorted((shapes_set / "images").iterdir())[:1]
    predict_images(load_run(run.root), files, tmp_path, threshold=0.0, device="cpu")
    assert (tmp_path / "predictions.json").stat().st_size > 10


def test_write_merged__gives_a_plain_checkpoint(run: RunDirectory, tmp_path: Path) -> None:
    loaded = load_run(run.root)
    adapted = load_run(run.root).model
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    write_merged(loaded, tmp_path / "merged.safetensors")
    words = [f"model.weights={tmp_path / 'merged.safetensors'}", "model.frozen_precision=fp32", "train.precision=fp32"]
    config = run.load_config().model_dump(mode="json")
    config["model"] = {}
    plain = build_base(parse_config(config, words), NUM_CLASSES).eval()
    if loaded.config.model.frozen_precision == "bf16":
        adapted = adapted.float()
    with torch.no_grad():
        wanted, found = adapted(images), plain(images)
    torch.testing.assert_close(found.mask_features, wanted.mask_features, rtol=1e-4, atol=1e-4)


def test_load_adapter__over_a_base_in_bf16_fits_that_in_fp32_and_the_other_way_round(
    run: RunDirectory, finished: RunDirectory, tiny: dict[str, Any]
) -> None:
    name = run.load_config().model.frozen_precision
    lower = parse_config(tiny, [f"model.frozen_precision={name}"])
    for config, adapter in ((parse_config(tiny), run.adapter), (lower, finished.adapter)):
        if name == "bf16":
            load_adapter(build_base(config, NUM_CLASSES), adapter)
        else:
            with pytest.raises(CheckpointError, match="quantised"):
                load_adapter(build_base(config, NUM_CLASSES), adapter)


def test_train_run__over_bf16_equals_training_in_bf16_over_fp32(tiny: dict[str, Any], tmp_path: Path) -> None:
    adapters = []
    for name in ("fp32", "bf16"):
        directory = RunDirectory(tmp_path / name)
        train_run(parse_config(tiny, [f"model.frozen_precision={name}", "train.precision=bf16"]), directory)
        adapters.append(load_file(directory.adapter))
    first, second = adapters
    assert all(torch.allclose(first[key], second[key], rtol=1e-2, atol=1e-4) for key in first)


def test_config__frozen_weights_in_bf16_need_training_in_bf16(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`train.precision` must be `bf16` with `model.frozen_precision: bf16`"):
        parse_config(tiny, ["model.frozen_precision=bf16", "train.precision=fp32"])


@pytest.mark.slow
def test_estimate__counts_the_bytes_of_the_stored_weights(tiny: dict[str, Any]) -> None:
    found = {name: estimate(parse_config(tiny, [f"model.frozen_precision={name}"])) for name in ("fp32", *PRECISIONS)}
    sizes = [found[name].weight_bytes for name in ("fp32", "bf16", "int8", "nf4")]
    assert sizes == sorted(sizes, reverse=True)
    assert len({each.total_params for each in found.values()}) == 1
