"""Models of transformers give what the library gives: answers, losses and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.errors import ConfigError
from vispeft.models import DetectionLimits, LossSettings, SegmentationModel, TransformersModel, build_model
from vispeft.models.split import SplitPointError
from vispeft.peft import Names
from vispeft.structures import ImageMeta, Targets

MODEL_TYPES = ["mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3"]
TASK_TOKENS = [49406, 518, 10549, 533, 34572, 49407]

Directory = Callable[[str], Path]


def built(directory: Path, *, num_classes: int = 3, **arguments: Any) -> TransformersModel:
    model = build_model("transformers", backbone=str(directory), num_classes=num_classes, pretrained=True, **arguments)
    assert isinstance(model, TransformersModel)
    return model


def batch() -> tuple[torch.Tensor, list[Targets]]:
    """Two images, the second without objects."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    masks = torch.rand(3, 64, 64, generator=generator) > 0.6
    boxes = torch.rand(3, 4, generator=generator)
    return images, [
        Targets(torch.tensor([0, 2, 1]), boxes, masks),
        Targets(torch.zeros(0).long(), boxes[:0], masks[:0]),
    ]


def inputs_of(model: TransformersModel, images: torch.Tensor, targets: list[Targets]) -> dict[str, Any]:
    """Return the library's own inputs for the same batch."""
    inputs: dict[str, Any] = {
        "pixel_values": images,
        "mask_labels": [t.masks.float() for t in targets],
        "class_labels": [t.labels for t in targets],
    }
    if model.encoder_name == "oneformer":
        tokens = torch.zeros(2, model.config.task_seq_len, dtype=torch.long)
        tokens[:, : len(TASK_TOKENS)] = torch.tensor(TASK_TOKENS[: model.config.task_seq_len])
        inputs["task_inputs"] = tokens
    if model.encoder_name != "eomt" and model.encoder_name != "eomt_dinov3":
        # without it the library cannot make MaskFormer's auxiliary answers
        inputs["output_hidden_states"] = True
    return inputs


def gradients(model: SegmentationModel, loss: torch.Tensor) -> Mapping[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_criterion__is_the_librarys_own_loss(model_type: str, transformers_directory: Directory) -> None:
    model = built(transformers_directory(model_type)).train()
    # rests of dropout would draw at other places
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    images, targets = batch()
    torch.manual_seed(3)
    expected = model.network(**inputs_of(model, images, targets)).loss
    expected_gradients = gradients(model, expected)
    torch.manual_seed(3)
    losses = model.criterion(LossSettings())(model(images, targets), targets)
    assert set(losses) == {"class", "mask", "dice"}
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, expected.reshape(()), rtol=1e-6, atol=1e-6)
    own = gradients(model, total)
    assert own.keys() == expected_gradients.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_forward__gives_the_librarys_logits(model_type: str, transformers_directory: Directory) -> None:
    model = built(transformers_directory(model_type)).eval()
    images, targets = batch()
    inputs = inputs_of(model, images, targets)
    with torch.no_grad():
        outputs = model.network(**{k: v for k, v in inputs.items() if not k.endswith("labels")})
        predictions = model(images)
    assert len(predictions.layers) == 1
    torch.testing.assert_close(predictions.final.class_logits, outputs.class_queries_logits)
    some = torch.tensor([4, 0, 7])
    expected = outputs.masks_queries_logits[1, some]
    torch.testing.assert_close(predictions.mask_logits(1, some), expected)
    # the product with unit vectors changes nothing
    assert torch.equal(predictions.mask_logits(1, some), predictions.mask_features[1, some])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_criterion__of_a_batch_without_objects_is_finite(model_type: str, transformers_directory: Directory) -> None:
    model = built(transformers_directory(model_type)).train()
    images, targets = batch()
    targets = [targets[1], targets[1]]
    losses = model.criterion(LossSettings(num_points=32))(model(images, targets), targets)
    assert losses["mask"] == losses["dice"] == 0
    assert losses["class"] > 0
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]


def test_criterion__takes_the_number_of_points(transformers_directory: Directory) -> None:
    model = built(transformers_directory("mask2former"))
    criterion = model.criterion(LossSettings(num_points=17))
    assert criterion.network.criterion.num_points == criterion.network.criterion.matcher.num_points == 17
    # a loss of whole masks takes none
    built(transformers_directory("maskformer")).criterion(LossSettings(num_points=17))


def test_instances__are_unharmed_by_one_mask_that_is_not_finite(transformers_directory: Directory) -> None:
    model = built(transformers_directory("eomt")).eval()
    metas = [ImageMeta(1, "a.png", 64, 64, 64, 64)] * 2
    with torch.no_grad():
        predictions = model(batch()[0])

    def instances() -> Any:
        return model.instances(predictions, metas, padded_size=(64, 64), limits=DetectionLimits(36))[0]

    expected = instances()
    assert len(expected) > 12
    predictions.mask_features[0, 3] = float("nan")
    assert 0 < len(instances()) < len(expected)


def test_model__has_the_image_processors_rule(transformers_directory: Directory) -> None:
    model = built(transformers_directory("mask2former"))
    assert model.pixel_mean == (127.5, 102.0, 76.5)
    assert model.pixel_std == (51.0, 51.0, 63.75)
    assert (model.size_divisor, model.num_queries, model.num_classes) == (32, 12, 3)
    # positions for one square
    assert built(transformers_directory("eomt")).size_divisor == 64


def test_check_image_size__refuses_another_side_than_that_of_the_positions(transformers_directory: Directory) -> None:
    with pytest.raises(ConfigError, match=r"`image_size` must be 64, for which eomt has positions, but is 96"):
        built(transformers_directory("eomt")).check_image_size(96)
    # rotary positions fit every side
    model = built(transformers_directory("eomt_dinov3"), image_size=96).eval()
    model.check_image_size(96)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 96)).mask_features.shape[-1] == 12
    built(transformers_directory("maskformer")).check_image_size(96)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_roles__name_modules_of_the_network(model_type: str, transformers_directory: Directory) -> None:
    model = built(transformers_directory(model_type))
    roles = model.roles()
    for role in ("heads", "class_head", "new"):
        for pattern in roles[role].split(" | "):
            assert Names(model).trained(pattern, {})
    head: Any = model.get_submodule(roles["class_head"])
    assert head.out_features == 4


def test_split__is_refused(transformers_directory: Directory) -> None:
    with pytest.raises(SplitPointError, match="no split point"):
        built(transformers_directory("eomt")).split(torch.zeros(1, 3, 64, 64))


def test_set_activation_checkpointing__is_refused_where_the_library_has_none(
    transformers_directory: Directory,
) -> None:
    with pytest.raises(ConfigError, match="eomt of transformers has no activation checkpointing"):
        built(transformers_directory("eomt")).set_activation_checkpointing()
