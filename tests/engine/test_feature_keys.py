"""Keys of kept features are equal exactly if everything that the features were computed from is equal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.coco.sets import CocoSet
from vispeft.config import parse_config
from vispeft.data import Draw, read_coco
from vispeft.engine.build import build_base
from vispeft.engine.feature_keys import EntryKeys, prefix_fingerprint
from vispeft.models.split import FrozenPrefix


@pytest.fixture(scope="module")
def coco_set(shapes_set: Path) -> CocoSet:
    return read_coco(shapes_set / "train.json", shapes_set / "images")


def test_entry_keys__tell_apart_what_differs(coco_set: CocoSet) -> None:
    keys = EntryKeys(coco_set, {"flip": 0.5})
    draws = [Draw(index, variant) for index in range(len(coco_set)) for variant in range(2)]
    assert len({keys(draw) for draw in draws}) == len(draws)
    assert [EntryKeys(coco_set, {"flip": 0.5})(draw) for draw in draws] == [keys(draw) for draw in draws]
    assert EntryKeys(coco_set, {"flip": 0.6})(draws[0]) != keys(draws[0])
    moved = replace(coco_set, images=tuple(replace(image, path=Path("/elsewhere/a.jpg")) for image in coco_set.images))
    assert EntryKeys(moved, {"flip": 0.5})(draws[0]) != keys(draws[0])
    bare = replace(coco_set, annotations=coco_set.subset([1, 0, 2, 3, 4, 5]).annotations)
    assert EntryKeys(bare, {"flip": 0.5})(Draw(0)) != keys(Draw(0))
    assert EntryKeys(bare, {"flip": 0.5})(Draw(2)) == keys(Draw(2))


def test_prefix_fingerprint__depends_on_the_prefix_alone(tiny: dict[str, Any]) -> None:
    config = parse_config(tiny)
    model = build_base(config, 3)
    model.requires_grad_(False).eval()
    model.decoder.requires_grad_(True)
    images = torch.zeros(1, 3, 64, 64)
    prefix = FrozenPrefix(model, model.split(images), images)

    def fingerprint(arithmetic: str = "cpu fp32") -> str:
        return prefix_fingerprint(config, model, prefix, arithmetic=arithmetic)

    first = fingerprint()
    with torch.no_grad():
        model.decoder.class_embed.weight.add_(1)
    assert fingerprint() == first
    assert fingerprint("cpu bf16") != first
    with torch.no_grad():
        model.pixel_decoder.level_embed[0, 0].add_(1e-6)
    assert fingerprint() != first
