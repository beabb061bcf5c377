"""SAM 3's loss: the authors' formula, sample by sample and written independently, in float64; and its edges."""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, generalized_box_iou, sigmoid_focal_loss

from vispeft.models.wrappers.sam3.answers import Answers
from vispeft.models.wrappers.sam3.criterion import Criterion
from vispeft.models.wrappers.sam3.predictions import PromptPredictions
from vispeft.structures import LayerPredictions, Targets

L, B, K, Q, SIDE = 2, 2, 3, 5, 16


def answers() -> Answers:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    boxes = (random(L, B, K, Q, 4) - 1).sigmoid()
    parts = (random(L, B, K, Q), random(L, B, K), boxes, random(B, K, Q, SIDE // 4, SIDE // 4))
    return Answers(*(part.float().requires_grad_() for part in parts))


def predictions_of(given: Answers) -> PromptPredictions:
    masks = given.mask_logits.flatten(1, 2)
    unit = torch.eye(K * Q).expand(B, -1, -1)
    final = LayerPredictions(torch.zeros(B, K * Q, K), given.boxes[-1].flatten(1, 2), unit)
    return PromptPredictions((final,), masks, answers=given)


def targets() -> list[Targets]:
    """Two objects of class 0 and one of class 2; one object of class 1."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for labels in ([0, 2, 0], [1]):
        boxes = 0.2 + 0.4 * torch.rand(len(labels), 4, generator=generator)
        masks = torch.rand(len(labels), SIDE, SIDE, generator=generator) > 0.5
        made.append(Targets(torch.tensor(labels), boxes, masks))
    return made


def authors_loss(given: Answers, given_targets: list[Targets]) -> dict[str, Tensor]:
    """Each sample is a pair of an image and a prompt, as in `Sam3LossWrapper` of facebookresearch/sam3."""
    losses = {
        name: torch.zeros((), dtype=torch.float64) for name in ("class", "presence", "box", "giou", "mask", "dice")
    }
    num_boxes = sum(len(t) for t in given_targets)
    for layer in range(L):
        for b, target in enumerate(given_targets):
            for k in range(K):
                of_class = target.labels == k
                logits = given.query_logits[layer, b, k].double()
                presence = given.presence_logits[layer, b, k].double()
                losses["presence"] += (
                    0.5 * F.binary_cross_entropy_with_logits(presence, of_class.any().double()) / (B * K)
                )
                if not of_class.any():
                    continue
                boxes, aims = given.boxes[layer, b, k].double(), target.boxes[of_class].double()
                corners, aim_corners = (box_convert(x, "cxcywh", "xyxy") for x in (boxes, aims))
                p = logits.sigmoid()
                cost = 2 * (-0.25 * (1 - p) ** 2 * F.logsigmoid(logits) + 0.75 * p**2 * F.logsigmoid(-logits))[:, None]
                cost = cost + 5 * torch.cdist(boxes, aims, p=1) - 2 * generalized_box_iou(corners, aim_corners)
                i, j = linear_sum_assignment(cost.detach().numpy())
                overlap = box_iou(corners, aim_corners)[i, j]
                quality = (p[i] ** 0.25 * overlap**0.75).clamp(min=0.01).detach()
                positive = 10 * F.binary_cross_entropy_with_logits(logits[i], quality, reduction="sum")
                is_negative = torch.ones(Q, dtype=torch.float64)
                is_negative[i] = 0
                negative = (-F.logsigmoid(-logits) * p**2 * is_negative).sum()
                losses["class"] += (positive + negative) / (200 * B * K)
                losses["box"] += (boxes[i] - aims[j]).abs().sum() / num_boxes
                losses["giou"] += (1 - generalized_box_iou(corners, aim_corners)[i, j]).sum() / num_boxes
                if layer == L - 1:
                    maps = given.mask_logits[b, k, i].double()[:, None]
                    read = F.interpolate(maps, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0].flatten(1)
                    labels = target.masks[of_class][j].flatten(1).double()
                    losses["mask"] += sigmoid_focal_loss(read, labels, 0.25, 2).mean(1).sum() / num_boxes
                    shares = read.sigmoid()
                    overlaps = 2 * (shares * labels).sum(1) + 1
                    losses["dice"] += (1 - overlaps / (shares.sum(1) + labels.sum(1) + 1)).sum() / num_boxes
    factors = {"class": 20, "presence": 20, "box": 5, "giou": 2, "mask": 200, "dice": 10}
    return {name: factors[name] * loss for name, loss in losses.items()}


def gradients(given: Answers, losses: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(vars(given).values())))


def test_criterion__is_the_authors_loss() -> None:
    given = answers()
    losses, expected = Criterion()(predictions_of(given), targets()), authors_loss(given, targets())
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
    for gradient, other in zip(gradients(given, losses), gradients(given, expected), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_criterion__of_a_prompt_without_objects_is_its_presence() -> None:
    given, (first, second) = answers(), targets()
    nothing = replace(first, labels=first.labels[:0], boxes=first.boxes[:0], masks=first.masks[:0])
    losses = Criterion()(predictions_of(given), [nothing, nothing])
    assert losses["presence"] > 0
    assert all(loss == 0 for name, loss in losses.items() if name != "presence")
    by_query, *_ = gradients(given, Criterion()(predictions_of(given), [first, second]))
    is_present = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.equal(by_query.abs().sum((0, 3)) > 0, is_present)


def test_criterion__at_many_points_is_near_all_pixels() -> None:
    given = answers()
    torch.manual_seed(0)
    losses = Criterion(num_points=20000)(predictions_of(given), targets())
    whole = Criterion()(predictions_of(given), targets())
    assert {name for name in losses if losses[name] != whole[name]} == {"mask", "dice"}
    # most points lie where the logits are near zero
    torch.testing.assert_close(losses["dice"], whole["dice"], rtol=0.3, atol=0.0)
    assert all(gradient.isfinite().all() for gradient in gradients(given, losses))


def test_criterion__takes_more_objects_than_queries() -> None:
    given, (first, second) = answers(), targets()
    many = Targets(torch.zeros(9, dtype=torch.long), first.boxes.repeat(3, 1), first.masks.repeat(3, 1, 1))
    assert torch.stack(list(Criterion()(predictions_of(given), [many, second]).values())).isfinite().all()
