"""Models of transformers are trained, resumed, evaluated, used and merged from a configuration like any family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run, write_merged
from vispeft.engine.build import build_base, check_weights_files, size_of, with_class_head_rates
from vispeft.engine.estimation.estimate import estimate
from vispeft.errors import CheckpointError, ConfigError, PlanError
from vispeft.io.metrics_file import read_metrics
from vispeft.training.callbacks.base import Callback

MODEL_TYPES = ["mask2former", "maskformer", "oneformer", "eomt"]
# maps of the query projection or of the whole attention, of each model type's last attention
LORA_SITES = {
    "mask2former": "network.model.transformer_module.decoder.layers.*.self_attn.q_proj",
    "maskformer": "network.model.transformer_module.decoder.layers.*.self_attn.q_proj",
    "oneformer": "network.model.transformer_module.decoder.layers.*.ffn.linear1",
    "eomt": "network.layers.*.attention.q_proj",
}
ADAPTER_SITES = {
    "mask2former": "network.model.transformer_module.decoder.layers.*.self_attn.out_proj",
    "maskformer": "network.model.transformer_module.decoder.layers.*.self_attn.o_proj",
    "oneformer": "network.model.transformer_module.decoder.layers.*.ffn.linear2",
    "eomt": "network.layers.*.mlp.fc2",
}

Directory = Callable[[str], Path]


def configured(tiny: dict[str, Any], directory: Path, deltas: Mapping[str, Any]) -> dict[str, Any]:
    model = {"name": "transformers", "weights": str(directory)}
    return {**tiny, "model": model, "peft": {"deltas": deltas, "train": ["@heads"]}}


def lora(tiny: dict[str, Any], directory: Path, model_type: str) -> dict[str, Any]:
    return configured(tiny, directory, {LORA_SITES[model_type]: {"method": "lora", "rank": 2}})


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_train_run__trains_evaluates_predicts_and_merges(
    model_type: str, tiny: dict[str, Any], shapes_set: Path, tmp_path: Path, transformers_directory: Directory
) -> None:
    transformers = pytest.importorskip("transformers")
    source = transformers_directory(model_type)
    directory = RunDirectory(tmp_path / "run")
    config = parse_config(lora(tiny, source, model_type), ["train.steps=20", "train.log_every=1", "train.lr=0.004"])
    result = train_run(config, directory)
    assert result.summary is not None
    losses = [line["loss"] for line in read_metrics(directory.metrics) if line["split"] == "train"]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert result.summary["model"] == f"transformers over {model_type} ({source})"
    assert result.summary["segm"] == evaluate_run(directory.root).segm
    image = next((shapes_set / "images").iterdir())
    run = load_run(directory.root)
    report = predict_images(run, [image], tmp_path / "out", device="cpu", threshold=0.0)
    assert report.num_instances > 0
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = run.model(x).final.class_logits
    with pytest.raises(CheckpointError, match=r"`--out` must be a directory for `model\.name: transformers`"):
        write_merged(run, tmp_path / "merged.safetensors")
    write_merged(run, tmp_path / "merged")
    opened = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "merged")
    assert list(opened.config.id2label.values()) == list(run.class_names)
    merged = {**config.model_dump()["model"], "weights": str(tmp_path / "merged")}
    other = parse_config({**lora(tiny, tmp_path / "merged", model_type), "model": merged})
    # the merged directory is a base whose classes are known
    assert with_class_head_rates(other, run.class_names).train.regions == {}
    assert "@class_head" in (with_class_head_rates(config, [str(i) for i in range(7)]).train.regions or {})
    opened.eval()
    inputs: dict[str, Any] = {}
    if model_type == "oneformer":
        inputs["task_inputs"] = torch.zeros(1, opened.config.task_seq_len, dtype=torch.long)
        inputs["task_inputs"][0, :6] = torch.tensor([49406, 518, 10549, 533, 34572, 49407])
    if model_type == "maskformer":
        inputs["output_hidden_states"] = True
    with torch.no_grad():
        logits = opened(pixel_values=x, **inputs).class_queries_logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_train_run__resumes_adapters_to_the_bit(
    model_type: str, tiny: dict[str, Any], tmp_path: Path, transformers_directory: Directory
) -> None:
    deltas = {ADAPTER_SITES[model_type]: {"method": "adapter", "width": 4}}
    config = parse_config(configured(tiny, transformers_directory(model_type), deltas))
    whole, halved = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "halved")
    train_run(config, whole)

    class StopError(Exception):
        pass

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        raise StopError

    with pytest.raises(StopError):
        train_run(config, halved, callbacks=[Callback(on_evaluation=stop)])
    train_run(config, halved, resume=True)
    assert halved.adapter.read_bytes() == whole.adapter.read_bytes()
    with pytest.raises(PlanError, match="merge"):
        write_merged(load_run(whole.root), tmp_path / "merged")


@pytest.mark.parametrize("model_type", ["eomt", "mask2former", "maskformer"])
def test_estimate__names_what_cannot_be_simulated(
    model_type: str, tiny: dict[str, Any], transformers_directory: Directory
) -> None:
    config = parse_config(lora(tiny, transformers_directory(model_type), model_type))
    with pytest.raises(ConfigError, match="cannot be simulated: its code decides by the values"):
        estimate(config)
    # the library keeps position embeddings by their shape: none of the simulation
    with torch.no_grad():
        logits = build_base(config, 3).eval()(torch.zeros(2, 3, 64, 64)).final.class_logits
    assert logits.isfinite().all()
    assert type(logits) is torch.Tensor


def test_size_of__is_the_image_processors(tiny: dict[str, Any], transformers_directory: Directory) -> None:
    config = parse_config(lora(tiny, transformers_directory("mask2former"), "mask2former"))
    assert size_of(config.model) == 64
    assert size_of(config.model.model_copy(update={"image_size": 96})) == 96
    check_weights_files(config.model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weights": "pretrained"}, r"`model\.weights` must name a directory or a model of the hub"),
        ({"backbone": "resnet50"}, r"`model\.backbone` must be left out with `model\.name: transformers`"),
        ({"size": "tiny"}, r"`model\.size` must be left out with `name: transformers`"),
        ({"options": {"nothing": 1}}, r"`model\.options` has no 'nothing'"),
    ],
)
def test_train_run__refuses_keys_of_our_families(
    keys: dict[str, Any], message: str, tiny: dict[str, Any], tmp_path: Path, transformers_directory: Directory
) -> None:
    document = lora(tiny, transformers_directory("eomt"), "eomt")
    document["model"] = {**document["model"], **keys}
    with pytest.raises(ConfigError, match=message):
        train_run(parse_config(document), RunDirectory(tmp_path / "run"))
