"""Runs shared on a stand-in of the hub, and used from there."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from vispeft import peft
from vispeft.config import load_config, parse_config
from vispeft.engine import RunDirectory, load_run, train_run, write_merged
from vispeft.engine.build import build_base
from vispeft.engine.push import ShareOptions, push_run, write_shared
from vispeft.errors import CheckpointError, ConfigError, VispeftError

FILES = {"README.md", "adapter.safetensors", "categories.json", "config.yaml", "summary.json"}


@pytest.fixture
def shared(finished: RunDirectory, hub: Any, hub_stand_in: ModuleType) -> Any:
    """The files of a repository of a finished run."""
    options = ShareOptions("me/run", licence="mit", datasets=("me/photos",))
    push_run(finished.root, options, is_private=False, token=hub_stand_in.TOKEN)
    return hub.repositories["me/run"].files


def test_push_run__uploads_what_others_need(shared: Any, finished: RunDirectory) -> None:
    assert shared.keys() == FILES
    assert shared["adapter.safetensors"] == finished.adapter.read_bytes()
    assert json.loads(shared["summary.json"]) == json.loads(finished.summary.read_text())
    # neither names of images nor places of this machine
    text = b"".join(content for name, content in shared.items() if name != "adapter.safetensors").decode()
    assert "val_0000" not in text
    assert str(finished.load_config().data.train.images) not in text
    assert str(finished.root) not in text


def test_load_run__from_the_hub_equals_the_run(shared: Any, finished: RunDirectory) -> None:
    expected, found = load_run(finished.root), load_run("hf://me/run")
    assert (found.class_names, found.category_ids) == (expected.class_names, expected.category_ids)
    assert found.config.model == expected.config.model
    assert found.config.peft == expected.config.peft
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_load_run__from_the_hub_works_offline_afterwards(
    shared: Any, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_run("hf://me/run")
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    count = len(hub.requests)
    load_run("hf://me/run")
    assert len(hub.requests) == count


def test_weights__may_be_a_run_of_the_hub(shared: Any, finished: RunDirectory) -> None:
    run = load_run(finished.root)
    config = parse_config({"model": {"weights": "hf://me/run", "keep_classes": True}, "peft": {"train": ["@heads"]}})
    merged = build_base(config, len(run.class_names), class_names=run.class_names).eval()
    assert not any("lora" in name for name in merged.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = merged(images), run.model(images)
    torch.testing.assert_close(found.mask_features, expected.mask_features, rtol=1e-4, atol=1e-5)


def test_weights__of_a_run_that_does_not_merge(
    tiny: dict[str, Any], hub: Any, hub_stand_in: ModuleType, tmp_path: Path
) -> None:
    plan = {"deltas": {"@encoder.proj": {"method": "adapter", "width": 4}}, "train": ["@heads"]}
    directory = RunDirectory(tmp_path / "adapters")
    train_run(parse_config({**tiny, "peft": plan}, ["train.steps=1"]), directory)
    push_run(directory.root, ShareOptions("me/adapters"), is_private=False, token=hub_stand_in.TOKEN)
    assert load_run("hf://me/adapters").model.num_queries == 12
    with pytest.raises(CheckpointError, match=r"`model\.weights` names a run of the hub whose deltas cannot be merged"):
        build_base(parse_config({"model": {"weights": "hf://me/adapters"}}), 3)


def test_card__has_metadata_results_data_base_and_licence(shared: Any, finished: RunDirectory) -> None:
    card = ModelCard(shared["README.md"].decode())
    data, summary = card.data.to_dict(), json.loads(finished.summary.read_text())
    assert data["library_name"] == "vispeft"
    assert data["license"] == "mit"
    assert data["datasets"] == ["me/photos"]
    assert data["pipeline_tag"] == "image-segmentation"
    assert {"lora", "mask_dino"} <= set(data["tags"])
    (result, _) = card.data.eval_results
    assert result.metric_value == round(summary["segm"]["AP"], 4)
    text = card.text
    assert "Licence of the adapter: mit" in text
    assert "Base: random weights, drawn from the seed" in text
    assert "vispeft predict hf://me/run photos" in text
    assert f"| mask | {summary['segm']['AP']:.3f} |" in text
    assert f"{summary['trainable_params']:,} of {summary['total_params']:,}" in text
    assert "on the 3 validation images" in text


@pytest.mark.parametrize(
    ("weights", "base_model", "words"),
    [
        ("bundled", None, "the model that comes with vispeft, licence: Apache-2.0"),
        ("mask_dino_r50", None, "Mask DINO, ResNet-50, COCO, https://github.com/IDEA-Research/MaskDINO"),
        ("eomt_l_640", "tue-mps/coco_instance_eomt_large_640", "licence of its weights: MIT"),
        ("pretrained", "timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k; its licence is named there"),
        ("hf://someone/model/a.pth@v1", "someone/model", "someone/model; its licence is named there"),
        ("https://a.b/c.pth", None, "https://a.b/c.pth; its licence is named there"),
    ],
)
def test_card__names_the_base(weights: str, base_model: str | None, words: str, finished: RunDirectory) -> None:
    from vispeft.engine.model_card import Card, model_card

    config = parse_config({"model": {"weights": weights, "image_size": 64}})
    card = Card("me/run", config, json.loads(finished.summary.read_text()), 3, ("a",))
    text = model_card(card)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front.get("base_model") == base_model
    assert words in text
    assert "license" not in front


def test_card__has_no_markup_of_class_names(finished: RunDirectory) -> None:
    from vispeft.engine.model_card import Card, model_card

    name = "a|b\n---\n<script>"
    summary = {**json.loads(finished.summary.read_text()), "per_category": {name: 0.5}}
    text = model_card(Card("me/run", parse_config({"model": {"image_size": 64}}), summary, 3, (name,)))
    assert r"| a\|b --- \<script\> | 0.500 |" in text
    assert "<script>" not in text


def test_write_shared__needs_a_base_that_others_can_fetch(
    tiny: dict[str, Any], finished: RunDirectory, tmp_path: Path
) -> None:
    base = tmp_path / "mine.safetensors"
    write_merged(load_run(finished.root), base)
    run = RunDirectory(tmp_path / "run")
    train_run(parse_config({**tiny, "model": {"weights": str(base)}}, ["train.steps=1"]), run)
    with pytest.raises(CheckpointError, match=r"mine\.safetensors of this machine.* --weights hf://user/name"):
        write_shared(run.root, ShareOptions("me/run"), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"is the file other\.pth"):
        write_shared(run.root, ShareOptions("me/run", weights="other.pth"), tmp_path / "out")
    folder = write_shared(run.root, ShareOptions("me/run", weights="hf://me/base"), tmp_path / "out")
    assert load_config(folder / "config.yaml").model.weights == "hf://me/base"
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    found, expected = peft.describe(folder / "adapter.safetensors"), peft.describe(run.adapter)
    assert (found.plan, found.fingerprint) == (expected.plan, expected.fingerprint)


def test_write_shared__needs_a_finished_run(tmp_path: Path, finished: RunDirectory) -> None:
    with pytest.raises(ConfigError, match="must be a run directory"):
        write_shared(tmp_path, ShareOptions("me/run"), tmp_path / "out")
    (tmp_path / "config.yaml").write_text(finished.config.read_text())
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors` is not there: the run is not finished"):
        write_shared(tmp_path, ShareOptions("me/run"), tmp_path / "out")


@pytest.mark.parametrize("name", ["run", "../run", "me/run/file", "me/run@v1"])
def test_write_shared__needs_the_name_of_a_repository(name: str, finished: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be the name of a repository"):
        write_shared(finished.root, ShareOptions(name), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft": {"modules": ["this"], "train": ["@heads"]}}, r"imports the Python modules \['this'\]"),
        ({"model": {"weights": "/etc/passwd"}}, r"reads the weights /etc/passwd \(`model\.weights`\)"),
        ({"model": {"name": "transformers", "weights": "/etc"}}, "reads the weights /etc "),
        ({"model": {"weights": "none", "backbone_weights": "a.pth"}}, r"reads the weights file a\.pth"),
        (
            {"model": {"weights": "none", "backbone_options": {"checkpoint_path": "a.pth"}}},
            r"sets `model\.backbone_options\.checkpoint_path`",
        ),
    ],
    ids=["modules", "weights", "directory", "backbone_weights", "checkpoint_path"],
)
def test_load_run__refuses_configurations_that_reach_into_this_machine(
    changes: dict[str, Any], message: str, shared: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shared["config.yaml"] = yaml.safe_dump({**yaml.safe_load(shared["config.yaml"]), **changes}).encode()
    for use in (
        lambda: load_run("hf://me/run"),
        lambda: build_base(parse_config({"model": {"weights": "hf://me/run"}}), 3),
    ):
        with pytest.raises(CheckpointError, match=message):
            use()
    assert not capsys.readouterr().out


def test_load_run__needs_a_run(hub: Any, hub_stand_in: ModuleType, shared: Any) -> None:
    hub.repositories["a/b"] = hub_stand_in.Repository({"model.safetensors": b""})
    with pytest.raises(CheckpointError, match=r"lacks adapter\.safetensors, config\.yaml, categories\.json"):
        load_run("hf://a/b")
    with pytest.raises(CheckpointError, match="names a file of it"):
        load_run("hf://me/run/config.yaml")


def test_load_run__refuses_a_damaged_adapter(shared: Any) -> None:
    shared["adapter.safetensors"] = b"\x80\x04no safetensors"
    with pytest.raises(VispeftError):
        load_run("hf://me/run")


@pytest.mark.parametrize(
    ("task", "metrics", "row", "tag", "identifier"),
    [
        (
            "semantic",
            {"semantic": {"mIoU": 0.5, "pixel_accuracy": 0.8}},
            "| pixels | 0.500 | 0.800 | - |",
            "semantic-segmentation",
            "mean_iou",
        ),
        (
            "panoptic",
            {"panoptic": {"PQ": 0.4, "SQ": 0.7}},
            "| segments | 0.400 | 0.700 |",
            "panoptic-segmentation",
            "panoptic_quality",
        ),
        (
            "detection",
            {"segm": {"AP": -1.0}, "bbox": {"AP": 0.3}},
            "| box | 0.300 |",
            "object-detection",
            "mean_average_precision",
        ),
    ],
)
def test_card__has_the_metrics_of_the_task(
    task: str, metrics: dict[str, Any], row: str, tag: str, identifier: str, finished: RunDirectory
) -> None:
    from vispeft.engine.model_card import Card, model_card

    kept = {
        key: value for key, value in json.loads(finished.summary.read_text()).items() if key not in ("segm", "bbox")
    }
    config = parse_config({"task": task, "model": {"image_size": 64}})
    text = model_card(Card("me/run", config, {**kept, **metrics, "per_category": {"a": 0.5}}, 3, ("a",)))
    card = ModelCard(text)
    (result,) = card.data.eval_results
    assert result.metric_type == identifier
    assert tag in card.data.tags
    assert row in text
    assert "| mask |" not in text
