"""Models of other channels than RGB are trained, evaluated and used; weights of the first map are adapted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import adapt_input_conv

from vispeft.config import parse_config
from vispeft.data.channel_stats import channel_stats
from vispeft.data.reading.coco import read_coco
from vispeft.data.reading.images import read_picture
from vispeft.data.transforms.brightness import BrightnessContrast
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.engine.build import build_base
from vispeft.engine.predict import predict
from vispeft.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def multispectral(shapes_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic set with five channels in arrays of 16 bits."""
    folder = tmp_path_factory.mktemp("five")
    for name in ("train", "val"):
        document = json.loads((shapes_set / f"{name}.json").read_text())
        for image in document["images"]:
            pixels = read_picture(shapes_set / "images" / image["file_name"]).pixels.astype(np.uint16)
            image["file_name"] = f"{Path(image['file_name']).stem}.npy"
            np.save(folder / image["file_name"], np.concatenate([pixels * 200, pixels[:, :, :2] * 30], 2))
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def config_of(tiny: dict[str, Any], folder: Path, family: str, *words: str) -> Any:
    data = {side: {"annotations": str(folder / f"{side}.json"), "images": str(folder)} for side in ("train", "val")}
    model = {**tiny["model"], "name": family, "in_chans": 5}
    if family == "eomt":
        model["options"] = {"num_queries": 12}
    plan = {"deltas": {"@encoder.qkv": {"method": "lora", "rank": 2}}, "train": ["@heads"]}
    stats = ["model.pixel_mean=[50, 50, 50, 8, 8]", "model.pixel_std=[30, 30, 30, 5, 5]"]
    return parse_config({**tiny, "data": data, "model": model, "peft": plan}, ["train.steps=2", *stats, *words])


@pytest.mark.parametrize("family", ["mask_dino", "eomt"])
def test_train_run__takes_five_channels(family: str, multispectral: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    cached = ["train.feature_cache=memory", "data.augment.variants=1", "peft.deltas={}"]
    words = cached if family == "mask_dino" else []
    directory = RunDirectory(tmp_path / "run")
    result = train_run(config_of(tiny, multispectral, family, *words), directory)
    assert result.summary is not None
    assert evaluate_run(directory.root).segm == result.summary["segm"]
    run, path = load_run(directory.root), next(multispectral.glob("*.npy"))
    assert run.model.num_channels == 5
    assert predict_images(run, [path], tmp_path / "out", device="cpu", threshold=0.0).num_instances > 0
    values = np.load(path).astype(np.float32) * np.float32(255 / 65535)
    (from_file,), (in_memory,) = predict(run, [path], threshold=0.0), predict(run, [values], threshold=0.0)
    assert [rle["counts"] for rle in from_file.rles] == [rle["counts"] for rle in in_memory.rles]
    with pytest.raises(DataError, match=r"array \[H, W, 5\] of uint8, or float32 in 0\.\.255"):
        predict(run, [values[:, :, :3]])


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_build_base__adapts_the_first_map_of_the_bundled_weights(channels: int) -> None:
    plain = build_base(parse_config({}, ["model.weights=bundled"]), 1).state_dict()
    config = parse_config({}, ["model.weights=bundled", f"model.in_chans={channels}"])
    model = build_base(config, 1)
    changed = [name for name, tensor in model.state_dict().items() if tensor.shape != plain[name].shape]
    assert len(changed) == 1
    found = model.state_dict()[changed[0]]
    assert torch.equal(found, adapt_input_conv(channels, plain[changed[0]]))
    assert len(model.pixel_mean) == len(model.pixel_std) == channels
    size = model.size_divisor * 2
    with torch.no_grad():
        assert model.eval()(torch.randn(1, channels, size, size)).final.class_logits.isfinite().all()


def test_build_base__refuses_statistics_of_other_channels() -> None:
    words = ["model.weights=bundled", "model.in_chans=4", "model.pixel_mean=[1, 2, 3]", "model.pixel_std=[1, 2, 3]"]
    with pytest.raises(ConfigError, match="one number for each of the 4 channels"):
        build_base(parse_config({}, words), 1)
    with pytest.raises(ConfigError, match="give both or none"):
        build_base(parse_config({}, words[:3]), 1)
    with pytest.raises(ConfigError, match=r"model\.in_chans"):
        parse_config({}, ["model.in_chans=13"])


def test_read_coco__leaves_out_images_of_other_channels(multispectral: Path) -> None:
    with pytest.raises(DataError, match="none of the 6 images"):
        read_coco(multispectral / "train.json", multispectral, num_channels=4)
    assert len(read_coco(multispectral / "train.json", multispectral, num_channels=5)) == 6


def test_channel_stats__are_those_of_all_pixels(multispectral: Path) -> None:
    found = channel_stats(read_coco(multispectral / "val.json", multispectral, num_channels=5), 5)
    names = [image["file_name"] for image in json.loads((multispectral / "val.json").read_text())["images"]]
    pixels = np.concatenate([np.load(multispectral / name).reshape(-1, 5) for name in names]) * (255 / 65535)
    np.testing.assert_allclose(found.pixel_mean, pixels.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.pixel_std, pixels.std(0), rtol=1e-3, atol=1e-3)


def test_brightness_contrast__changes_all_channels_alike() -> None:
    image = np.random.default_rng(0).uniform(50, 200, (8, 8, 5)).astype(np.float32)
    change = BrightnessContrast(0.3, np.random.default_rng(1))
    assert change.is_used
    found = change(image)["image"]
    assert found.dtype == np.float32
    mean = image.mean((0, 1)) * change.brightness
    np.testing.assert_allclose(found.mean((0, 1)), mean, rtol=1e-3)
    assert change(image.astype(np.uint8))["image"].dtype == np.uint8
