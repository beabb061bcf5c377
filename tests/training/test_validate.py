from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from vispeft.coco.results import to_coco_results
from vispeft.errors import DataError
from vispeft.models import DetectionLimits
from vispeft.models.mask_dino.postprocess import postprocess
from vispeft.structures import Batch, ImageMeta, Instances, Predictions
from vispeft.training.validate import gather_objects, predict_dataset

CATEGORY_IDS = (7, 90)


def instances_of(predictions: Predictions, metas: Sequence[ImageMeta], padded_size: tuple[int, int]) -> list[Instances]:
    return postprocess(predictions, metas, padded_size=padded_size, limits=DetectionLimits(5))


def test_predict_dataset__equals_postprocessing_image_by_image(
    make_run: Callable[..., Any], batch_of: Callable[..., Batch], fabric: Fabric
) -> None:
    torch.manual_seed(0)
    model = make_run().make_model()
    found = predict_dataset(fabric, model, [batch_of(1), batch_of(0)], instances_of, CATEGORY_IDS, num_images=4)
    expected = []
    for batch in (batch_of(0), batch_of(1)):
        with torch.no_grad():
            instances = instances_of(model.eval()(batch.images), batch.metas, (16, 16))
        for meta, one in zip(batch.metas, instances, strict=True):
            expected += to_coco_results(one, meta.image_id, CATEGORY_IDS)
    assert found == expected
    assert {result["category_id"] for result in found} <= set(CATEGORY_IDS)
    assert len(found) > 4


def test_predict_dataset__leaves_modes_as_they_were(
    make_run: Callable[..., Any], batch_of: Callable[..., Batch], fabric: Fabric
) -> None:
    model = make_run().make_model().train()
    model.body_norm.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    predict_dataset(fabric, model, [batch_of(0)], instances_of, CATEGORY_IDS, num_images=2)
    assert [name for name, module in model.named_modules() if not module.training] == ["body_norm"]
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_predict_dataset__restores_modes_after_an_error(make_run: Callable[..., Any], fabric: Fabric) -> None:
    model = make_run().make_model().train()

    def broken() -> Iterator[Batch]:
        yield from ()
        raise DataError("no more images")

    with pytest.raises(DataError):
        predict_dataset(fabric, model, broken(), instances_of, CATEGORY_IDS, num_images=1)
    assert all(module.training for module in model.modules())


def test_gather_objects__one_process_has_its_own(fabric: Fabric) -> None:
    assert gather_objects(fabric, {"a": 1}) == [{"a": 1}]
