"""A run on kept features is the run on images, to the bit; where there is nothing to keep, it says why."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from vispeft.config import Config, parse_config
from vispeft.engine import RunDirectory, read_sets, train_run
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base, complete
from vispeft.engine.features import KeptFeatures, keep_features
from vispeft.training.devices import build_fabric
from vispeft.training.feature_cache.store import FeatureMemory

HEADS = ["peft.deltas={}"]
LAST_BLOCK = [
    "peft.deltas={'@encoder.qkv[2:]': {method: lora, rank: 2, dropout: 0.1}, "
    "'@deformable.value_proj': {method: adapter, width: 4}}"
]
# its tail needs the grid of tokens that the frozen patch convolution made
CONVPASS = [
    "peft.deltas={'backbone.body.model.blocks.2.attn | backbone.body.model.blocks.2.mlp': {method: convpass, width: 4}}"
]
# more than two epochs, so that both variants come again
SHARED = ["data.augment.variants=2", "train.steps=7", "train.eval_every=4", "train.log_every=1"]


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], RunDirectory]:
    """Runs on images, one for each plan."""
    runs: dict[str, RunDirectory] = {}

    def run(plan: list[str]) -> RunDirectory:
        if plan[0] not in runs:
            runs[plan[0]] = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
            train_run(parse_config(tiny, [*SHARED, *plan]), runs[plan[0]])
        return runs[plan[0]]

    return run


def kept(config: Config, memory: FeatureMemory | None = None) -> KeptFeatures | None:
    """What a run of this configuration would keep, without the run."""
    sets = read_sets(config)
    config = complete(config, len(sets.train))
    model = build_base(config, len(sets.train.categories))
    attach(model, config)
    fabric = build_fabric("cpu", "fp32")
    return keep_features(config, fabric, sets, model, start_step=0, memory=memory or FeatureMemory())


def assert_same(one: RunDirectory, other: RunDirectory) -> None:
    first, second = load_file(one.adapter), load_file(other.adapter)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one.predictions.read_bytes() == other.predictions.read_bytes()
    assert (one.root / "metrics.jsonl").read_bytes() == (other.root / "metrics.jsonl").read_bytes()


def summary(directory: RunDirectory) -> Any:
    return json.loads(directory.summary.read_text()).get("feature_cache")


@pytest.mark.parametrize("plan", [HEADS, LAST_BLOCK, CONVPASS], ids=["heads", "last block", "token grid"])
def test_train_run__is_the_same_on_kept_features(
    plan: list[str], tiny: dict[str, Any], whole: Callable[[list[str]], RunDirectory], tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    train_run(parse_config(tiny, [*SHARED, *plan, f"train.feature_cache={tmp_path}/features"]), directory)
    assert_same(directory, whole(plan))
    # 6 images in 2 variants, and 3 to score on
    found = summary(directory)
    assert (found["computed"], found["reused"], found["splits"]) == (15, 0, ["train", "val"])
    assert found["behind"] == ("pixel_decoder" if plan is HEADS else "backbone.body.model.blocks.1")
    assert summary(whole(plan)) is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_train_run__is_the_same_on_kept_features_before_a_ladder(
    checkpointing: bool, tiny: dict[str, Any], whole: Callable[[list[str]], RunDirectory], tmp_path: Path
) -> None:
    plan = ["peft.deltas={'@encoder.blocks[1:]': {method: ladder, width: 4}}"]
    directory = RunDirectory(tmp_path / "run")
    cache = ["train.feature_cache=memory", f"model.activation_checkpointing={checkpointing}"]
    train_run(parse_config(tiny, [*SHARED, *plan, *cache]), directory)
    assert_same(directory, whole(plan))
    assert summary(directory)["behind"] == "backbone.body.model.blocks.0"


def test_train_run__keeps_no_features_of_a_ladder_on_all_blocks(
    tiny: dict[str, Any], whole: Callable[[list[str]], RunDirectory], tmp_path: Path
) -> None:
    plan = ["peft.deltas={'@encoder.blocks': {method: ladder, width: 4}}"]
    directory = RunDirectory(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"is off for this run: `.*blocks\.0\.ladder\.down_w` is trained"):
        train_run(parse_config(tiny, [*SHARED, *plan, "train.feature_cache=memory"]), directory)
    assert_same(directory, whole(plan))


def test_train_run__shares_features_in_memory(
    tiny: dict[str, Any], whole: Callable[[list[str]], RunDirectory], tmp_path: Path
) -> None:
    memory = FeatureMemory()
    for name, rate in (("other", 5e-3), ("same", 1e-3)):
        config = parse_config(tiny, [*SHARED, *HEADS, "train.feature_cache=memory", f"train.lr={rate}"])
        train_run(config, RunDirectory(tmp_path / name), memory=memory)
    assert_same(RunDirectory(tmp_path / "same"), whole(HEADS))
    assert [summary(RunDirectory(tmp_path / name))["reused"] for name in ("other", "same")] == [0, 15]


def test_train_run__goes_on_with_or_without_kept_features(
    tiny: dict[str, Any],
    whole: Callable[[list[str]], RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = RunDirectory(tmp_path / "run")
    config = parse_config(tiny, [*SHARED, *LAST_BLOCK, "train.feature_cache=memory"])
    evaluate = "vispeft.engine.train._evaluate"
    monkeypatch.setattr(evaluate, lambda *_: signal.raise_signal(signal.SIGINT))
    assert train_run(config, directory).step == 4
    monkeypatch.undo()
    assert train_run(parse_config(tiny, [*SHARED, *LAST_BLOCK]), directory, resume=True).step == 7
    assert_same(directory, whole(LAST_BLOCK))


def test_train_run__stops_while_features_are_computed(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(tiny, [*SHARED, *HEADS, f"train.feature_cache={tmp_path}/features"])
    directory = RunDirectory(tmp_path / "run")
    monkeypatch.setattr("vispeft.engine.features._frozen_prefix", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = train_run(config, directory)
    assert (result.step, result.summary) == (0, None)
    monkeypatch.undo()
    assert train_run(config, directory, resume=True).step == 7


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["peft.deltas={'@encoder.qkv': {method: lora, rank: 2}}"], r"`.*blocks\.0\.attn\.qkv\.lora\.a` is trained"),
        (
            ["peft.train=['**.patch_embed', '@heads']"],
            r"`.*patch_embed\.proj\.weight` is trained, and the first block or stage depends on it",
        ),
    ],
    ids=["first block", "patch embedding"],
)
def test_keep_features__says_why_there_are_none(tiny: dict[str, Any], overrides: list[str], reason: str) -> None:
    config = parse_config(tiny, [*SHARED, *HEADS, "train.feature_cache=memory", *overrides])
    with pytest.warns(UserWarning, match=f"`train.feature_cache` is off for this run: {reason}"):
        assert kept(config) is None


def test_keep_features__needs_room(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vispeft.training.feature_cache.store.available_memory_bytes", lambda: 1000)
    config = parse_config(tiny, [*SHARED, *HEADS, "train.feature_cache=memory"])
    with pytest.warns(UserWarning, match="off for this run: its features take .* MB, but there is room for 0 MB"):
        assert kept(config) is None


def test_keep_features__serves_one_process(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fabric, "world_size", 2)
    config = parse_config(tiny, [*SHARED, *HEADS, "train.feature_cache=memory"])
    with pytest.warns(UserWarning, match="off for this run: several processes train one model"):
        assert kept(config) is None


def test_keep_features__without_variants_keeps_what_is_scored(tiny: dict[str, Any]) -> None:
    config = parse_config(tiny, [*SHARED, *HEADS, "train.feature_cache=memory", "data.augment.variants="])
    with pytest.warns(UserWarning, match="validation images only: .*Set `data.augment.variants`"):
        found = kept(config)
    assert found is not None
    assert found.train is None
    assert (len(found.val), found.report.num_computed) == (3, 3)


def test_keep_features__is_off_unless_asked_for(tiny: dict[str, Any]) -> None:
    assert kept(parse_config(tiny, [*SHARED, *HEADS])) is None


@pytest.fixture
def folder(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """The set in a place of the test's own, so that its files may change."""
    for side in ("train", "val"):
        shutil.copy(tiny["data"][side]["annotations"], tmp_path)
    shutil.copytree(tiny["data"]["train"]["images"], tmp_path / "images")
    return tmp_path


def in_folder(tiny: dict[str, Any], folder: Path, *overrides: str) -> Config:
    sides = [f"data.{side}.annotations={folder}/{side}.json" for side in ("train", "val")]
    images = [f"data.{side}.images={folder}/images" for side in ("train", "val")]
    cache = f"train.feature_cache={folder}/features"
    return parse_config(tiny, [*SHARED, *HEADS, *sides, *images, cache, *overrides])


def test_keep_features__computes_again_what_changed(tiny: dict[str, Any], folder: Path) -> None:
    def computed(*overrides: str) -> int:
        found = kept(in_folder(tiny, folder, *overrides))
        assert found is not None
        return found.report.num_computed

    assert computed() == 15
    # seed, rates and length change nothing that is kept; more variants add some
    assert computed("train.lr=0.5", "train.steps=9") == 0
    assert computed("train.steps=9", "data.augment.variants=3") == 6
    assert computed("data.augment.flip=1.0") == 12
    assert computed("model.options={dim: 64, ffn_dim: 64, mask_dim: 16, num_queries: 12}") == 15
    image = next(iter(sorted((folder / "images").iterdir())))
    image.write_bytes(image.read_bytes())
    assert computed() in (1, 2)
    document = json.loads((folder / "val.json").read_text())
    document["annotations"][0]["bbox"][0] += 1
    (folder / "val.json").write_text(json.dumps(document))
    assert computed() == 1


def test_keep_features__computes_all_again_where_a_pasted_image_changed(tiny: dict[str, Any], folder: Path) -> None:
    def computed() -> int:
        found = kept(in_folder(tiny, folder, "data.augment.copy_paste=0.5"))
        assert found is not None
        return found.report.num_computed

    assert computed() == 15
    assert computed() == 0
    document = json.loads((folder / "train.json").read_text())
    document["annotations"][0]["bbox"][0] += 1
    (folder / "train.json").write_text(json.dumps(document))
    # every variant of every training image may show the one that changed
    assert computed() == 12


def test_keep_features__computes_a_damaged_shard_again(tiny: dict[str, Any], folder: Path) -> None:
    first = kept(in_folder(tiny, folder))
    assert first is not None
    assert first.train is not None
    wanted = [batch.features for batch in first.train]
    shards = sorted((folder / "features").glob("*/*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(shards[-1].read_bytes())
    content[-100] ^= 1
    shards[-1].write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="is damaged and was removed"):
        again = kept(in_folder(tiny, folder))
    assert again is not None
    assert again.train is not None
    assert (again.report.num_computed, again.report.num_reused) == (12, 3)
    for batch, features in zip(again.train, wanted, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch.features, features, strict=True))
