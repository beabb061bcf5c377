"""Graphs of models of every family, in batches that were not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import EoMT, SegmentationModel, build_model
from vispeft.models.exported.comparison import differing_output, example_batches
from vispeft.models.exported.description import GraphDescription
from vispeft.models.exported.files import read_onnx, write_onnx
from vispeft.models.exported.trace import outputs_of, trace
from vispeft.models.roles import roles_for
from vispeft.peft import VPT, ConvLoRA, Convpass, Method, Mona, Plan, Prefix, Rein, inject

SIDE = 64
VIT = {"depth": 3, "embed_dim": 48, "num_heads": 3}
SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
DECODER = {"dim": 32, "ffn_dim": 32, "mask_dim": 16, "num_heads": 2, "decoder_layers": 1, "pixel_decoder_layers": 1}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "eomt": ("eomt", "vit_tiny_patch16_224", VIT, {}),
    "pmt rotary": ("pmt", "vit_small_patch16_dinov3", {**VIT, "depth": 4}, {}),
    "mask2former swin": ("mask2former", "swin_tiny_patch4_window7_224", SWIN, DECODER),
    "mask_dino cnn": ("mask_dino", "resnet10t", {}, DECODER),
}
BLOCKS = "encoder.body.blocks.*"


def built(name: str) -> SegmentationModel:
    family, backbone, backbone_options, options = MODELS[name]
    torch.manual_seed(0)
    return build_model(
        family,
        backbone=backbone,
        backbone_options=backbone_options,
        num_classes=3,
        image_size=SIDE,
        pretrained=False,
        size="tiny",
        num_queries=8,
        **options,
    ).eval()


def described(model: SegmentationModel) -> GraphDescription:
    """Return a description, which has no effect on the graph."""
    statistics = {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std, "num_queries": 8}
    limits = {"score_threshold": 0.5, "max_detections": 300, "tile": None, "tile_overlap": 0.25}
    classes = {"class_names": ("a", "b", "c"), "category_ids": (1, 2, 3), "class_scores": "softmax"}
    origin = {"model": "eomt", "deltas": "none", "adapter_sha256": "", "vispeft_version": "0"}
    return GraphDescription(image_size=SIDE, padded_size=SIDE, **statistics, **limits, **classes, **origin)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmt rotary", "mask2former swin", "mask_dino cnn"])
def test_write_onnx__gives_the_models_outputs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = built(name)
    description = described(model)
    write_onnx(trace(model, SIDE), description, tmp_path / "model.onnx")
    graph, found = read_onnx(tmp_path / "model.onnx")
    assert found == description
    for images in example_batches(3, SIDE):
        assert differing_output(outputs_of(model, images), graph(images)) is None


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (BLOCKS, VPT(tokens=3)),
        (f"{BLOCKS}.attn", Prefix(tokens=3)),
        (f"{BLOCKS}.mlp", Convpass(width=3)),
        (f"{BLOCKS}.mlp", Mona(width=3)),
        (BLOCKS, Rein(tokens=4, rank=2)),
    ],
    ids=["vpt", "prefix", "convpass", "mona", "rein"],
)
def test_trace__keeps_methods_that_do_not_merge(pattern: str, method: Method) -> None:
    model = built("eomt")
    (of_base,) = (outputs_of(model, images) for images in example_batches(3, SIDE)[1:])
    inject(model, Plan({pattern: method}), roles=roles_for(model))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    module = trace(model, SIDE).module()
    with torch.no_grad():
        for images in example_batches(3, SIDE):
            found = module(images)
            assert differing_output(outputs_of(model, images), found) is None
    assert differing_output(of_base, found) is not None


def test_trace__refuses_a_method_that_decides_by_values() -> None:
    model = built("eomt")
    inject(model, Plan({f"{BLOCKS}.attn.qkv": ConvLoRA(rank=2, experts=2)}), roles=roles_for(model))
    with pytest.raises(ConfigError, match=r"The model cannot be exported: torch\.export cannot trace it"):
        trace(model, SIDE)


def test_write_onnx__refuses_operators_that_onnx_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = built("eomt")
    assert isinstance(model, EoMT)

    def bent(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(output)

    model.predictor.class_embed.register_forward_hook(bent)
    with pytest.raises(CheckpointError, match=r"cannot be written in ONNX operators .*Export to a \.pt2 file"):
        write_onnx(trace(model, SIDE), described(model), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_write_onnx__puts_large_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("vispeft.models.exported.files._LARGEST_WEIGHTS", 1000)
    model = built("eomt")
    write_onnx(trace(model, SIDE), described(model), tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    (images, _) = example_batches(3, SIDE)
    assert differing_output(outputs_of(model, images), read_onnx(tmp_path / "model.onnx")[0](images)) is None
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"weights in a file model\.onnx\.data must stand beside it"):
        read_onnx(tmp_path / "model.onnx")
