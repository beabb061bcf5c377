import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from torch.nn import functional

from vispeft.errors import VispeftError
from vispeft.models import DetectionLimits
from vispeft.models.mask_dino.postprocess import postprocess
from vispeft.structures import ImageMeta, LayerPredictions, Predictions


def instances_of(predictions, metas, padded_size=None, **limits):
    """Instances of images whose mask features are a quarter of the padded input, unless told otherwise."""
    height, width = predictions.mask_features.shape[-2:]
    size = padded_size or (4 * height, 4 * width)
    return postprocess(predictions, metas, padded_size=size, limits=DetectionLimits(**limits))


def _predictions(batch=2, queries=30, classes=5, height=16, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 8, height // 4, width // 4, generator=generator)
    layer = LayerPredictions(
        torch.randn(batch, queries, classes, generator=generator),
        torch.rand(batch, queries, 4, generator=generator),
        torch.randn(batch, queries, 8, generator=generator),
    )
    return Predictions((layer,), functional.interpolate(coarse, size=(height, width), mode="bicubic"))


def _with_masks(logits, boxes=None, class_logits=None):
    """Predictions of one image, whose query n has the mask logits[n]. logits: [N, h, w]."""
    num = len(logits)
    boxes = torch.full((1, num, 4), 0.5) if boxes is None else boxes[None]
    class_logits = torch.linspace(4, 1, num)[None, :, None] if class_logits is None else class_logits[None]
    return Predictions((LayerPredictions(class_logits, boxes, torch.eye(num)[None]),), logits[None])


def _masks(instances):
    return np.stack([mask_utils.decode(rle) for rle in instances.rles]).astype(bool)


def _published(predictions, image_idx, num_kept, shape):
    """Official inference for an image that fills its input and keeps its size: upsample all, top-k, mean foreground."""
    layer = predictions.final
    logits = torch.einsum("qd,dhw->qhw", layer.mask_embeddings[image_idx], predictions.mask_features[image_idx])
    logits = functional.interpolate(logits[None], size=shape, mode="bilinear", align_corners=False)[0]
    scores, pairs = layer.class_logits[image_idx].sigmoid().flatten().topk(num_kept)
    logits = logits[pairs // layer.class_logits.shape[-1]]
    masks = (logits > 0).float()
    scores = scores * (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    order = scores.argsort(descending=True)
    return scores[order], (pairs % layer.class_logits.shape[-1])[order], masks[order].bool().numpy()


def test_postprocess__agrees_with_official_inference():
    predictions = _predictions()
    metas = [ImageMeta(7, "a.png", 64, 96, 64, 96), ImageMeta(8, "b.png", 64, 96, 64, 96)]
    for image_idx, instances in enumerate(instances_of(predictions, metas, max_detections=40)):
        scores, labels, masks = _published(predictions, image_idx, 40, (64, 96))
        torch.testing.assert_close(instances.scores, scores)
        assert instances.labels.tolist() == labels.tolist()
        assert (_masks(instances) == masks).all()


def test_postprocess__the_chunk_size_changes_nothing(monkeypatch):
    predictions, metas = _predictions(), [ImageMeta(1, "a", 100, 77, 61, 90), ImageMeta(2, "b", 30, 20, 64, 33)]
    whole = instances_of(predictions, metas)
    monkeypatch.setattr("vispeft.models.postprocess._CHUNK_BYTES", 1)
    pieces = instances_of(predictions, metas)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
        assert (_masks(one) == _masks(other)).mean() > 0.9999  # products of another size round differently


def test_postprocess__a_mask_does_not_depend_on_those_resized_with_it(monkeypatch):
    cells = torch.arange(32.0)
    centres, radii = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * 32, torch.arange(40) / 4 + 0.3
    distance = (cells[:, None] - centres[:, 0, None, None]) ** 2 + (cells - centres[:, 1, None, None]) ** 2
    predictions, metas = _with_masks(radii[:, None, None] - distance.sqrt()), [ImageMeta(1, "a", 300, 211, 128, 90)]
    (together,) = instances_of(predictions, metas, padded_size=(128, 128))
    monkeypatch.setattr("vispeft.models.postprocess._PIXELS_TOGETHER", 1)
    (alone,) = instances_of(predictions, metas, padded_size=(128, 128))
    assert len(together) > 20
    assert together.rles == alone.rles
    torch.testing.assert_close(together.scores, alone.scores)


def test_postprocess__batched_equals_single():
    predictions, metas = _predictions(), [ImageMeta(1, "a", 100, 77, 61, 90), ImageMeta(2, "b", 30, 20, 64, 33)]
    layer = predictions.final
    for idx, together in enumerate(instances_of(predictions, metas)):
        part = slice(idx, idx + 1)
        single = LayerPredictions(layer.class_logits[part], layer.boxes[part], layer.mask_embeddings[part])
        (alone,) = instances_of(Predictions((single,), predictions.mask_features[part]), [metas[idx]])
        assert torch.equal(alone.boxes_xyxy, together.boxes_xyxy)
        assert alone.rles == together.rles


@pytest.mark.parametrize(("input_width", "width"), [(96, 96), (93, 93), (61, 244), (77, 40), (90, 1000), (1, 50)])
def test_postprocess__an_edge_lands_on_the_exact_pixel(input_width, width):
    # the logit falls linearly across the input and is 0 at x = edge, in input pixels
    for edge in (0.31 * input_width, 0.5 * input_width, 0.77 * input_width):
        cells = (torch.arange(24) + 0.5) * 4
        logits = (edge - cells).expand(1, 16, 24)
        (instances,) = instances_of(_with_masks(logits), [ImageMeta(1, "a", 64, width, 64, input_width)])
        centres = (np.arange(width) + 0.5) * input_width / width
        # left of the first cell's centre there is nothing to interpolate with, and the logit stays what it is there
        expected = np.maximum(centres, 2.0) < edge if edge > 2 else np.zeros(width, dtype=bool)
        found = _masks(instances)[0].all(axis=0) if len(instances) else np.zeros(width, dtype=bool)
        assert (found == expected).all()


def test_postprocess__other_strides_than_four():
    cells = (torch.arange(24) + 0.5) * 3.5
    logits = (40.0 - cells).expand(1, 16, 24)
    meta = ImageMeta(1, "a", 56, 84, 56, 84)
    (instances,) = instances_of(_with_masks(logits), [meta], padded_size=(56, 84))
    assert _masks(instances)[0].sum(axis=1).tolist() == [40] * 56
    assert instances.boxes_xyxy[0].tolist() == [21.0, 14.0, 63.0, 42.0]


def test_postprocess__masks_in_the_padding_are_dropped():
    logits = torch.full((2, 16, 24), -5.0)
    logits[0, :, 20:] = 5.0
    logits[1, :, 2:4] = 5.0
    (instances,) = instances_of(_with_masks(logits), [ImageMeta(1, "a", 64, 40, 64, 40)])
    assert len(instances) == 1
    assert _masks(instances)[0][:, 8:16].all()


def test_postprocess__boxes_are_in_original_pixels_and_clipped():
    boxes = torch.tensor([[0.25, 0.5, 0.25, 0.5], [0.9, 0.9, 0.8, 0.8], [0.0, 0.0, 0.5, 0.5]])
    (instances,) = instances_of(_with_masks(torch.ones(3, 16, 24), boxes), [ImageMeta(1, "a", 30, 100, 60, 50)])
    expected = torch.tensor([[24.0, 8.0, 72.0, 24.0], [96.0, 16.0, 100.0, 30.0], [0.0, 0.0, 48.0, 8.0]])
    torch.testing.assert_close(instances.boxes_xyxy, expected)


def test_postprocess__nothing_but_finite_numbers_comes_out():
    predictions = _predictions(batch=1)
    layer = predictions.final
    layer.class_logits[0, 0] = float("nan")
    layer.class_logits[0, 1] = float("inf")
    layer.boxes[0, 2, 1] = float("nan")
    layer.class_logits[0, 2] = 50.0
    layer.mask_embeddings[0, 3] = float("nan")
    predictions.mask_features[0, :, 3, 5] = float("nan")
    (instances,) = instances_of(predictions, [ImageMeta(1, "a", 64, 96, 64, 96)], max_detections=150)
    assert 0 < len(instances) < 150
    assert instances.scores.isfinite().all()
    assert instances.boxes_xyxy.isfinite().all()


def test_postprocess__the_threshold_is_on_the_final_score():
    logits = torch.full((2, 16, 24), -5.0)
    logits[0, :8], logits[1, :8] = 0.1, 6.0
    predictions = _with_masks(logits, class_logits=torch.tensor([[3.0], [2.0]]))
    (instances,) = instances_of(predictions, [ImageMeta(1, "a", 64, 96, 64, 96)], score_threshold=0.6)
    assert len(instances) == 1
    assert float(instances.scores[0]) == pytest.approx(float(torch.tensor([2.0, 6.0]).sigmoid().prod()), abs=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3000, 2)])
def test_postprocess__extreme_images(shape):
    (instances,) = instances_of(_predictions(batch=1), [ImageMeta(1, "a", *shape, 64, 96)])
    assert len(instances.rles) > 0
    assert all(rle["size"] == list(shape) for rle in instances.rles)


def test_postprocess__nothing_found_is_an_empty_result():
    (instances,) = instances_of(_with_masks(torch.full((3, 16, 24), -1.0)), [ImageMeta(1, "a", 64, 96, 64, 96)])
    assert len(instances) == 0
    assert instances.boxes_xyxy.shape == (0, 4)


def test_postprocess__never_holds_all_masks_at_the_image_size(monkeypatch):
    monkeypatch.setattr("vispeft.models.postprocess._CHUNK_BYTES", 4 * 16 * 24 * 10)
    predictions = _predictions(batch=1, queries=300)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        instances_of(predictions, [ImageMeta(1, "a", 600, 500, 64, 96)])
    assert largest <= 600 * 500


def test_postprocess__half_precision_predictions():
    predictions = _predictions(batch=1)
    layer = predictions.final
    half = LayerPredictions(layer.class_logits.bfloat16(), layer.boxes.bfloat16(), layer.mask_embeddings.bfloat16())
    meta = ImageMeta(1, "a", 64, 96, 64, 96)
    (instances,) = instances_of(Predictions((half,), predictions.mask_features.bfloat16()), [meta])
    assert instances.scores.dtype == instances.boxes_xyxy.dtype == torch.float32
    assert len(instances) > 50


def test_postprocess__metas_must_match_the_batch():
    with pytest.raises(VispeftError, match="must name 2 images, but names 1"):
        instances_of(_predictions(), [ImageMeta(1, "a", 64, 96, 64, 96)])
