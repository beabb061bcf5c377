"""The model as a whole, at a size that a test can afford."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models import MaskDINO, build_model
from vispeft.models.layers.geometry import masks_to_boxes
from vispeft.peft import LoRA, Plan, inject, train_mode
from vispeft.structures import LayerPredictions, Predictions, Targets

SMALL = {"dim": 32, "ffn_dim": 48, "num_heads": 2, "mask_dim": 16, "num_queries": 12, "denoising_budget": 10}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": None}


def small(num_classes: int = 3) -> MaskDINO:
    torch.manual_seed(0)
    return build_model(
        "mask_dino",
        backbone="vit_small_patch16_rope_224",
        backbone_options=VIT,
        num_classes=num_classes,
        size="tiny",
        **SMALL,
    )


def targets(counts: tuple[int, ...], side: int = 64) -> list[Targets]:
    generator = torch.Generator().manual_seed(1)
    result = []
    for count in counts:
        boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.2
        masks = torch.rand(count, side, side, generator=generator) > 0.5
        result.append(Targets(torch.randint(0, 3, (count,), generator=generator), boxes, masks))
    return result


def total(predictions: Predictions) -> Tensor:
    """A number that every output takes part in."""
    denoising = predictions.denoising.layers if predictions.denoising is not None else ()
    proposals = () if predictions.proposals is None else (predictions.proposals,)
    parts: list[LayerPredictions] = [*predictions.layers, *proposals, *denoising]
    return sum(
        (p.class_logits.square().sum() + p.boxes.square().sum() + p.mask_embeddings.square().sum() for p in parts),
        predictions.mask_features.square().sum(),
    )


def test_forward__gives_the_shapes_that_structures_tell() -> None:
    model = small().eval()
    with torch.inference_mode():
        predictions = model(torch.randn(2, 3, 64, 96))
    assert [layer.class_logits.shape for layer in predictions.layers] == [(2, 12, 3)] * 4
    assert predictions.final.boxes.shape == (2, 12, 4)
    assert predictions.mask_features.shape == (2, 16, 16, 24)
    assert predictions.mask_logits(1, torch.tensor([3, 5])).shape == (2, 16, 24)
    assert predictions.denoising is None


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (25, 1)], ids=["one empty", "all empty", "more than the budget"])
def test_forward__gives_every_parameter_a_gradient(counts: tuple[int, ...]) -> None:
    model = small().train()
    total(model(torch.randn(2, 3, 64, 64), targets(counts))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_forward__takes_inputs_with_fewer_cells_than_queries() -> None:
    model = small().train()
    model.decoder.num_queries = 100
    predictions = model(torch.randn(1, 3, 64, 64), targets((3,)))
    assert predictions.final.boxes.shape == (1, 64 + 16 + 4, 4)


def test_forward__an_images_prediction_does_not_depend_on_its_batch() -> None:
    model = small().eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together, alone = model(images), model(images[1:2])
    torch.testing.assert_close(together.final.boxes[1:2], alone.final.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.final.class_logits[1:2], alone.final.class_logits, atol=1e-4, rtol=1e-4)


def test_forward__matched_queries_do_not_see_the_ground_truth() -> None:
    model = small().train()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.manual_seed(0)
        first = model(images, targets((4,)))
        torch.manual_seed(5)
        second = model(images, [Targets(t.labels.flip(0), t.boxes.flip(1), t.masks) for t in targets((4,))])
    torch.testing.assert_close(first.final.boxes, second.final.boxes)
    assert first.denoising is not None
    assert second.denoising is not None
    assert not torch.allclose(first.denoising.layers[-1].boxes, second.denoising.layers[-1].boxes)


def test_forward__denoising_groups_do_not_see_each_other() -> None:
    model = small().train()
    images = torch.randn(1, 3, 64, 64)

    def predict(*, changed: bool) -> Predictions:
        """Denoising queries whose second group has other content, where `changed`."""

        def other(_: nn.Module, inputs: object, content: Tensor) -> Tensor:
            return torch.cat((content[:, :4], content[:, 4:].flip(-1)), dim=1) if changed else content

        handle = model.decoder.label_embed.register_forward_hook(other)
        torch.manual_seed(3)
        predictions: Predictions = model(images, targets((4,)))
        handle.remove()
        return predictions

    with torch.no_grad():
        plain, changed = predict(changed=False).denoising, predict(changed=True).denoising
    assert plain is not None
    assert changed is not None
    assert (plain.num_groups, plain.group_size) == (2, 4)
    difference = (plain.layers[-1].class_logits - changed.layers[-1].class_logits).abs().amax(-1)[0]
    assert difference[:4].max() < 1e-5
    assert difference[4:].min() > 1e-4


def test_forward__boxes_begin_with_those_of_the_proposals_own_masks() -> None:
    model = small().eval()
    with torch.inference_mode():
        predictions = model(torch.randn(1, 3, 64, 64))
    assert predictions.proposals is not None
    masks = torch.einsum("qd,dhw->qhw", predictions.proposals.mask_embeddings[0], predictions.mask_features[0]) > 0
    is_found = masks.flatten(1).any(1)
    assert is_found.any()
    wanted = masks_to_boxes(masks, inclusive_end=True)
    torch.testing.assert_close(predictions.layers[0].boxes[0][is_found], wanted[is_found], atol=1e-4, rtol=0)


def test_forward__selected_queries_give_the_encoder_no_gradient() -> None:
    model = small().train()
    predictions = model(torch.randn(1, 3, 64, 64))
    assert predictions.proposals is not None
    weight = model.decoder.enc_output.weight
    final, proposals = predictions.final.class_logits.sum(), predictions.proposals.class_logits.sum()
    assert torch.autograd.grad(final, weight, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(proposals, weight)[0].any()


def test_forward__a_box_gives_the_layer_before_a_gradient() -> None:
    """Look forward twice: also where the last layer's own output passes none on."""
    model = small().train()
    # fresh, it is zero and passes nothing on
    nn.init.normal_(model.decoder.bbox_embed.layers[-1].weight, std=0.1)
    model.decoder.layers[-1].register_forward_hook(lambda module, inputs, output: output.detach())
    boxes = model(torch.randn(1, 3, 64, 64)).final.boxes
    (gradient,) = torch.autograd.grad(boxes.sum(), model.decoder.layers[-2].linear2.weight, allow_unused=True)
    assert gradient is not None
    assert gradient.any()


def test_forward__refuses_a_size_off_the_grid() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 32.*60x64"):
        small()(torch.randn(1, 3, 60, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: build_model("mask_dina"), "Did you mean `mask_dino`"),
        (lambda: build_model("mask_dino", backbone="resnet5o"), r"timm model.*resnet5o"),
        (lambda: build_model("mask_dino", size="tyny"), "Did you mean `tiny`"),
        (lambda: build_model("mask_dino", num_querys=3), "Did you mean `num_queries`"),
        (lambda: build_model("mask_dino", num_classes=0), "at least 1, but is 0"),
        (
            lambda: build_model("mask_dino", backbone_options={"bogus": 1}),
            "timm cannot build `backbone` 'resnet50'",
        ),
    ],
    ids=["model", "backbone", "size", "option", "classes", "backbone option"],
)
def test_build_model__says_what_is_wrong(change: Callable[[], MaskDINO], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change()


@pytest.mark.parametrize(
    ("backbone", "options", "image_size"),
    [
        ("vit_tiny_patch16_224", {"depth": 3}, 96),
        ("test_vit", {"patch_size": 14}, 84),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}, 96),
        ("resnet18", {}, 96),
    ],
    ids=["plain ViT", "patch 14", "Swin", "ResNet"],
)
def test_build_model__takes_any_timm_backbone(backbone: str, options: dict[str, object], image_size: int) -> None:
    model = build_model(
        "mask_dino", backbone=backbone, backbone_options=options, image_size=image_size, size="tiny", **SMALL
    )
    with torch.inference_mode():
        predictions = model.eval()(torch.randn(1, 3, image_size, image_size))
    assert predictions.final.class_logits.shape == (1, 12, 80)
    assert torch.isfinite(predictions.mask_features).all()


def test_set_activation_checkpointing__keeps_less_and_gives_the_same_gradients() -> None:
    model, images = small().train(), torch.randn(2, 3, 64, 64)
    gradients, kept = [], []
    for enable in (False, True):
        model.set_activation_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        with keeping() as sizes:
            loss = total(model(images, targets((2, 1))))
        kept.append(sum(sizes.values()))
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < 0.75 * kept[0]


@contextmanager
def keeping() -> Iterator[dict[int, int]]:
    """Within it, the bytes of each storage that autograd keeps."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        # a freed storage would give its address to another
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def test_set_activation_checkpointing__gives_the_gradients_of_lora_whoever_moves_what_is_kept() -> None:
    model, images = small(), torch.randn(1, 3, 64, 64)
    inject(model, Plan({"pixel_decoder.layers.*.self_attn.value_proj": LoRA(4)}))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    train_mode(model)
    gradients = []
    for enable in (False, True):
        model.set_activation_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            total(model(images, targets((1,)))).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) >= 4
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad)
