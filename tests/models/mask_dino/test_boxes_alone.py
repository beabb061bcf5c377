"""Mask DINO without masks: weights of the whole model, losses, boxes, and what is not computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.losses import HungarianMatcher
from vispeft.models import DetectionLimits, LossSettings, MaskDINO, build_model
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.structures import ImageMeta, LayerPredictions, Predictions, Targets


def _model(*, predicts_masks: bool) -> MaskDINO:
    torch.manual_seed(0)
    model = build_model(
        "mask_dino",
        backbone="resnet10t",
        num_classes=3,
        size="tiny",
        dim=32,
        ffn_dim=32,
        mask_dim=16,
        num_queries=9,
        predicts_masks=predicts_masks,
    )
    assert isinstance(model, MaskDINO)
    return model


def _targets() -> list[Targets]:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:24], masks[1, 32:60, 20:60] = True, True
    boxes = torch.tensor([[0.25, 0.375, 0.25, 0.5], [0.625, 0.71875, 0.625, 0.4375]])
    return [Targets(torch.tensor([0, 2]), boxes, masks)]


def test_load_tensors__leaves_out_the_masks_of_a_whole_model() -> None:
    whole, boxes = _model(predicts_masks=True), _model(predicts_masks=False)
    boxes.load_tensors(whole.state_dict(), source="whole.pth")
    left_out = whole.state_dict().keys() - boxes.state_dict().keys()
    parts = {".".join(name.split(".")[:2]) for name in left_out}
    assert parts == {
        "pixel_decoder.lateral_convs",
        "pixel_decoder.output_convs",
        "pixel_decoder.mask_features",
        "decoder.mask_embed",
    }
    for name, tensor in boxes.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"it lacks pixel_decoder\.lateral_convs"):
        whole.load_tensors(boxes.state_dict(), source="boxes.pth")


def test_forward__predicts_classes_and_boxes_of_the_whole_model_from_the_same_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, boxes = _model(predicts_masks=True).eval(), _model(predicts_masks=False).eval()
    boxes.load_tensors(whole.state_dict(), source="whole.pth")
    images = torch.rand(2, 3, 64, 64)
    # the initial boxes are the proposals' own
    monkeypatch.setattr(whole.decoder, "_boxes_from_masks", lambda proposals, _: proposals.predicted_boxes)
    with torch.no_grad():
        one, other = whole(images), boxes(images)
    assert torch.allclose(one.final.class_logits, other.final.class_logits, atol=1e-5)
    assert torch.allclose(one.final.predicted_boxes, other.final.predicted_boxes, atol=1e-5)
    assert other.mask_features.shape == (2, 0, *other.mask_features.shape[2:])
    assert other.final.mask_embeddings.shape == (2, 9, 0)


def test_criterion__gives_every_parameter_a_gradient() -> None:
    model = _model(predicts_masks=False).train()
    losses = model.criterion(LossSettings())(model(torch.rand(1, 3, 64, 64), _targets()), _targets())
    assert list(losses) == ["class", "box", "giou"]
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_criterion__equals_that_of_masks_which_cost_nothing() -> None:
    torch.manual_seed(2)

    def layer(width: int) -> LayerPredictions:
        return LayerPredictions(torch.randn(1, 6, 3), torch.rand(1, 6, 4), torch.zeros(1, 6, width))

    layers = (layer(5), layer(5))
    whole = Predictions(layers, torch.zeros(1, 5, 4, 4))
    boxes = Predictions(
        tuple(replace(each, mask_embeddings=each.mask_embeddings[..., :0]) for each in layers), torch.zeros(1, 0, 4, 4)
    )
    criterion = Criterion(matcher=HungarianMatcher(num_points=16), num_points=16)
    # the same cost of every query does not change the matching
    one, other = criterion(whole, _targets()), criterion(boxes, _targets())
    assert other.keys() == {"class", "box", "giou"}
    for name, loss in other.items():
        assert torch.allclose(loss, one[name])


def test_instances__are_the_best_boxes() -> None:
    model = _model(predicts_masks=False)
    logits = torch.full((1, 2, 3), -4.0)
    logits[0, 0, 2], logits[0, 1, 0] = 1.0, 3.0
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.25], [0.5, 0.5, 2.0, 0.5]]])
    predictions = Predictions((LayerPredictions(logits, boxes, torch.zeros(1, 2, 0)),), torch.zeros(1, 0, 16, 16))
    meta = ImageMeta(1, "a.png", 100, 200, 32, 64)
    (found,) = model.instances(
        predictions, [meta], padded_size=(64, 64), limits=DetectionLimits(max_detections=4, score_threshold=0.5)
    )
    assert found.labels.tolist() == [0, 2]
    assert found.scores.tolist() == pytest.approx([_sigmoid(3.0), _sigmoid(1.0)])
    # the image fills the upper half of the input
    assert found.boxes_xyxy.flatten().tolist() == pytest.approx([0, 50, 200, 100, 0, 25, 100, 75])
    assert len(found.rles) == 0


def _sigmoid(value: float) -> float:
    return float(Tensor.sigmoid(torch.tensor(value)))
