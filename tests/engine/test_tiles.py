"""Training, evaluation and prediction by tiles from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.engine.build import size_of
from vispeft.engine.loaders import Share, drawn_for_scoring, read_sets, train_dataset, val_dataset
from vispeft.engine.predict import predict
from vispeft.io.json_files import read_json

TILES = ["model.tile=40", "model.image_size=64", "train.steps=2", "eval.batch_size=3"]


def test_train_run__scores_whole_images_from_tiles(tiny: dict[str, Any], shapes_set: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    result = train_run(parse_config(tiny, TILES), directory)
    assert result.summary is not None
    assert evaluate_run(directory.root).segm == result.summary["segm"]
    sizes = {tuple(entry["segmentation"]["size"]) for entry in read_json(directory.predictions)}
    assert sizes == {(64, 64)}
    run, image = load_run(directory.root), sorted((shapes_set / "images").iterdir())[0]
    predict_images(run, [image], tmp_path / "out", device="cpu", threshold=0.0)
    (found,) = predict(run, [image], threshold=0.0)
    written = read_json(tmp_path / "out" / "predictions.json")
    assert [entry["segmentation"]["counts"] for entry in written] == [rle["counts"] for rle in found.rles]
    (whole,) = predict(run, [image], threshold=0.0, tile=64)
    assert len(whole) > 0
    assert len(found) > 0


def test_val_dataset__gives_every_tile_once(tiny: dict[str, Any]) -> None:
    config = parse_config(tiny, TILES)
    sets = read_sets(config)
    dataset = val_dataset(config, sets.val)
    draws = [draw for batch in drawn_for_scoring(config, sets.val, Share()) for draw in batch]
    assert len(draws) == len(set(draws)) == 3 * 4
    seen = np.zeros((64, 64), int)
    for draw in draws[:4]:
        sample = dataset[draw]
        window = sample.meta.window
        assert window is not None
        assert (window.image_height, window.num_windows) == (64, 4)
        assert sample.image.shape == (3, 64, 64)
        seen[window.top : window.top + 40, window.left : window.left + 40] += 1
    assert seen.min() == 1
    shares = [[d.index for b in drawn_for_scoring(config, sets.val, Share(rank, 2)) for d in b] for rank in (0, 1)]
    assert set(shares[0]) == {0, 2}
    assert set(shares[1]) == {1}


def test_train_dataset__draws_windows_at_the_scale_of_tiles(tiny: dict[str, Any]) -> None:
    config = parse_config(tiny, [*TILES, "data.augment.scale=[1.0, 1.0]", "data.augment.colour=0"])
    sets = read_sets(config)
    sample = train_dataset(config, sets.train)[0]
    assert sample.image.shape == (3, 64, 64)
    assert len(sample.labels) == len(sample.masks) == len(sample.boxes_xyxy)
    config = parse_config(tiny, ["model.tile=128", "model.image_size=128", "data.augment.scale=[1.0, 1.0]"])
    # an image smaller than a tile keeps its own size
    assert train_dataset(config, sets.train)[0].image.shape == (3, 64, 64)


def test_size_of__is_that_of_a_tile() -> None:
    assert size_of(parse_config({}, ["model.tile=512"]).model) == 512
    assert size_of(parse_config({}, ["model.tile=512", "model.image_size=256"]).model) == 256


def test_keep_features__gives_the_reason(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(tiny, [*TILES, "train.feature_cache=memory", "train.steps=1"])
    with pytest.warns(UserWarning, match="images are cut into tiles"):
        train_run(config, RunDirectory(tmp_path / "run"))


def test_predict__finds_the_same_with_one_tile(finished: RunDirectory, shapes_set: Path) -> None:
    run, image = load_run(finished.root), sorted((shapes_set / "images").iterdir())[0]
    (whole,), (tiled,) = predict(run, [image], threshold=0.0), predict(run, [image], threshold=0.0, tile=64)
    assert [rle["counts"] for rle in whole.rles] == [rle["counts"] for rle in tiled.rles]
