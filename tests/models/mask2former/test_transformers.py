"""Mask2Former of transformers with random weights and ours: outputs, gradients, and directories in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.models import Mask2Former, build_model, load_weights
from vispeft.models.mask2former.transformers_config import read_directory_metadata
from vispeft.models.mask2former.transformers_names import from_transformers

transformers = pytest.importorskip("transformers")

CLASSES = 3
STAGES = ["stage1", "stage2", "stage3", "stage4"]
HEADS = {
    "feature_size": 32,
    "hidden_dim": 32,
    "mask_feature_size": 32,
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 64,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "num_queries": 7,
}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": (
        "SwinConfig",
        {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 4, "out_features": STAGES},
    ),
    "wider swin": (
        "SwinConfig",
        {
            "embed_dim": 32,
            "depths": [2, 2, 2, 2],
            "num_heads": [2, 4, 4, 8],
            "window_size": 3,
            "mlp_ratio": 2.0,
            "out_features": STAGES,
        },
    ),
    "resnet": (
        "ResNetConfig",
        {"depths": [1, 1, 2, 1], "hidden_sizes": [64, 64, 96, 128], "layer_type": "basic", "out_features": STAGES},
    ),
    "resnet of bottlenecks": (
        "ResNetConfig",
        {"depths": [1, 2, 1, 1], "hidden_sizes": [32, 64, 64, 96], "out_features": STAGES},
    ),
    "timm": ("TimmBackboneConfig", {"backbone": "regnetx_002", "out_indices": [1, 2, 3, 4], "features_only": True}),
}


def theirs(backbone: str, **options: Any) -> Any:
    """Return transformers' model with random weights, norms about one."""
    kind, sizes = BACKBONES[backbone]
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=getattr(transformers, kind)(**sizes), num_labels=CLASSES, **{**HEADS, **options}
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def read(directory: Path) -> Mask2Former:
    metadata = read_directory_metadata(directory)
    model = build_model(num_classes=CLASSES, **metadata.arguments).eval()
    assert isinstance(model, Mask2Former)
    load_weights(model, directory)
    return model


@pytest.fixture(params=list(BACKBONES))
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Mask2Former]:
    model = theirs(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, read(tmp_path / "theirs")


def their_logits(model: Any, images: Tensor) -> list[Tensor]:
    """Class and mask logits of every layer, the last one first."""
    outputs = model(images, output_auxiliary_logits=True)
    layers = [vars(outputs), *outputs.auxiliary_logits]
    return [layer[f"{name}_queries_logits"] for layer in layers for name in ("class", "masks")]


def our_logits(model: Mask2Former, images: Tensor) -> list[Tensor]:
    predictions = model(images)
    logits: list[Tensor] = []
    for layer in (predictions.final, *predictions.layers[:-1]):
        logits += [layer.class_logits, torch.einsum("bqd,bdhw->bqhw", layer.mask_embeddings, predictions.mask_features)]
    return logits


def assert_close(given: Tensor, expected: Tensor, message: str, *, floor: float = 0.0) -> None:
    """Compare within 1e-4 of the largest value. floor: values below are rounding errors of zero"""
    scale = max(float(expected.detach().abs().max()), floor)
    difference = float((given - expected).detach().abs().max())
    assert difference <= 1e-4 * scale, f"{message}: {difference} of {scale}"


@torch.no_grad()
def test_outputs__are_those_of_transformers(both: tuple[Any, Mask2Former]) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected, given = their_logits(both[0], images), our_logits(both[1], images)
    for number, (one, other) in enumerate(zip(given, expected, strict=True)):
        assert_close(one, other, f"output {number}")


def test_gradients__are_those_of_transformers(both: tuple[Any, Mask2Former]) -> None:
    """In float64, since rounding errors are large where random maps before a norm are nearly constant."""
    for model in both:
        model.double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 96, generator=generator, dtype=torch.float64)
    inputs = [images.clone().requires_grad_() for _ in both]
    expected, given = their_logits(both[0], inputs[0]), our_logits(both[1], inputs[1])
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) / x.numel() ** 0.5 for x in expected]
    for logits in (expected, given):
        torch.stack([(weight * x).sum() for weight, x in zip(weights, logits, strict=True)]).sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert_close(inputs[1].grad, inputs[0].grad, "images")
    their_gradients = from_transformers(gradients(both[0]))
    our_gradients = gradients(both[1])
    assert their_gradients.keys() == our_gradients.keys()
    # biases of keys and before norms have no gradient but rounding errors
    floor = 1e-6 * max(float(gradient.abs().max()) for gradient in their_gradients.values())
    for name, gradient in their_gradients.items():
        assert_close(our_gradients[name], gradient, name, floor=floor)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_save_directory__is_opened_by_transformers_with_the_same_weights(
    both: tuple[Any, Mask2Former], tmp_path: Path
) -> None:
    original, model = both
    model.save_directory(tmp_path / "ours", class_names=["nut", "fruit", "leaf"], image_size=96)
    opened, info = transformers.AutoModelForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    assert list(opened.config.id2label.values()) == ["nut", "fruit", "leaf"]
    expected = {n: tensor for n, tensor in original.state_dict().items() if "encoder.swin.layernorm." not in n}
    assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in expected.items())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    assert dict(processor.size) == {"shortest_edge": 96, "longest_edge": 96}
    back = read(tmp_path / "ours")
    assert (back.pixel_mean, back.pixel_std) == (model.pixel_mean, model.pixel_std)
    assert read_directory_metadata(tmp_path / "ours").image_size == 96
    tensors = model.state_dict()
    assert back.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.state_dict().items())


def test_load_tensors__takes_the_names_of_the_modules_too(both: tuple[Any, Mask2Former]) -> None:
    original, model = both
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_tensors(original.state_dict(), source="their modules")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_read__takes_weights_in_several_files(tmp_path: Path) -> None:
    theirs("swin").save_pretrained(tmp_path / "one")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    (tmp_path / "two").mkdir()
    weight_map = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for part in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == part}, tmp_path / "two" / part)
    (tmp_path / "two" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    index = tmp_path / "two" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    one, two = (read(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="names no files of weights"):
        read(tmp_path / "two")
    index.unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        read(tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "maskformer"}, "'maskformer' model, not of mask2former"),
        ({"pre_norm": True}, "`pre_norm` must be False"),
        ({"feature_size": 64}, "`feature_size` must be 32"),
        ({"backbone_config": {"model_type": "focalnet"}}, "`backbone_config` .* 'focalnet'"),
        ({"backbone_config": {"model_type": "swin", "use_absolute_embeddings": True}}, "`use_absolute_embeddings`"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1]}}, "ResNet of four stages"),
    ],
)
def test_read_directory_metadata__refuses_other_models(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {**theirs("swin").config.to_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    with pytest.raises(CheckpointError, match=message):
        read_directory_metadata(tmp_path)


def test_load_tensors__names_a_lacking_part_of_packed_weights() -> None:
    start = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    with pytest.raises(CheckpointError, match="only query, key of the three parts"):
        from_transformers({f"{start}.{part}.weight": torch.zeros(2, 2) for part in ("query", "key")})


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("resnet18", {"in_chans": 4}),
        ("resnet26d", {"layers": (1, 1, 1, 1)}),
        ("swinv2_tiny_window8_256", {}),
    ],
)
def test_save_directory__refuses_what_transformers_does_not_have(
    backbone: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = build_model("mask2former", backbone=backbone, backbone_options=options, size="tiny", num_classes=1)
    assert isinstance(model, Mask2Former)
    with pytest.raises(CheckpointError, match=rf"over {backbone} .* \(\.safetensors\) instead"):
        model.save_directory(tmp_path / "out", class_names=["nut"])
    assert not (tmp_path / "out").exists()
