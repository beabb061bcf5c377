"""Geometry, denoising, roles and checkpoints of the models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vispeft.errors import CheckpointError
from vispeft.models import MaskDINO, build_model, load_bundled, load_weights, save_bundled
from vispeft.models.checkpoint_metadata import CheckpointMetadata, read_checkpoint_metadata, save_with_metadata
from vispeft.models.layers.denoising import make_denoising_queries
from vispeft.models.layers.geometry import cell_centres, inverse_sigmoid, masks_to_boxes
from vispeft.models.layers.relu import relu_before
from vispeft.models.roles import roles_for
from vispeft.structures import Targets

OPTIONS = {"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 1}
ANATOMY = {
    "name": "mask_dino",
    "backbone": "vit_small_patch16_rope_224",
    "size": "tiny",
    "backbone_options": OPTIONS,
    "dim": 32,
    "ffn_dim": 32,
    "num_heads": 1,
    "mask_dim": 8,
    "num_queries": 4,
}


def tiny(num_classes: int) -> MaskDINO:
    torch.manual_seed(0)
    return build_model(num_classes=num_classes, **ANATOMY)


def test_masks_to_boxes__encloses_the_mask_exactly() -> None:
    masks = torch.zeros(1, 2, 8, 10, dtype=torch.bool)
    masks[0, 0, 2:5, 4:9] = True
    masks[0, 1, 7, 0] = True
    expected = torch.tensor([[[6.5 / 10, 3.5 / 8, 5 / 10, 3 / 8], [0.5 / 10, 7.5 / 8, 1 / 10, 1 / 8]]])
    torch.testing.assert_close(masks_to_boxes(masks, inclusive_end=True), expected)


def test_inverse_sigmoid__undoes_the_sigmoid() -> None:
    x = torch.linspace(-6, 6, 31)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x, atol=1e-3, rtol=1e-3)


def test_cell_centres__are_x_then_y() -> None:
    torch.testing.assert_close(cell_centres([(1, 2)], torch.device("cpu")), torch.tensor([[0.25, 0.5], [0.75, 0.5]]))


def test_make_denoising_queries__without_noise_gives_the_truth() -> None:
    labels, boxes = torch.tensor([1, 0]), torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.2, 0.1, 0.1]])
    target = Targets(labels, boxes, torch.zeros(2, 4, 4, dtype=torch.bool))
    empty = Targets(labels[:0], boxes[:0], target.masks[:0])
    embedding = nn.Embedding(3, 5)
    queries = make_denoising_queries([target, empty], embedding, num_queries=3, budget=5, noise_scale=0.0)
    assert queries is not None
    assert (queries.num_groups, queries.group_size) == (2, 2)
    torch.testing.assert_close(queries.boxes_logits[0].sigmoid(), boxes.repeat(2, 1))
    torch.testing.assert_close(queries.content[0], embedding(labels).repeat(2, 1))
    assert not queries.content[1].any()
    expected = torch.block_diag(*[torch.ones(2, 2)] * 2, torch.ones(3, 3)).bool()
    expected[:, 4:] = True
    assert torch.equal(queries.attention_mask, expected)


def test_make_denoising_queries__redraws_half_the_noises_share_of_labels() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(1000, 1)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(1000.0)[:, None])
    labels = torch.full((1000,), 7)
    targets = [Targets(labels, torch.full((1000, 4), 0.5), torch.ones(1000, 2, 2) > 0)]
    noised = make_denoising_queries(targets, embedding, num_queries=3, budget=1, noise_scale=0.4)
    assert noised is not None
    assert float((noised.content[0, :, 0] != 7).float().mean()) == pytest.approx(0.2, abs=0.05)


def test_make_denoising_queries__keeps_noise_within_its_scale() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    target = Targets(torch.tensor([1]), boxes, torch.zeros(1, 4, 4, dtype=torch.bool))
    queries = make_denoising_queries([target], nn.Embedding(3, 5), num_queries=3, budget=500, noise_scale=0.4)
    assert queries is not None
    moved = (queries.boxes_logits[0].sigmoid() - boxes).abs().amax(0)
    limits = torch.tensor([0.1, 0.2, 0.2, 0.4]) * 0.4
    assert (moved <= limits + 1e-5).all()
    assert (moved > limits * 0.9).all()


def test_roles_for__resolves_qkv_to_the_parameter_where_timm_reads_it() -> None:
    beit = timm.create_model("beit_base_patch16_224", depth=1, embed_dim=32, num_heads=1)
    assert roles_for(beit)["encoder.qkv"] == "blocks.*.attn.qkv.weight"
    vit = timm.create_model("test_vit")
    assert roles_for(vit)["encoder.qkv"] == "blocks.*.attn.qkv"


def test_roles_for__is_empty_for_an_unknown_family() -> None:
    assert roles_for(nn.Linear(1, 1)) == {}


def test_load_weights__restores_a_checkpoint_and_names_what_does_not_fit(tmp_path: Path) -> None:
    source, target = tiny(3), build_model(num_classes=3, **ANATOMY)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    deeper = build_model(num_classes=3, **{**ANATOMY, "backbone_options": {**OPTIONS, "depth": 4}})
    with pytest.raises(CheckpointError, match=r"lacks .*backbone\.body\.model\.blocks\.3"):
        load_weights(deeper, tmp_path / "model.safetensors")


def test_load_weights__new_classes_start_as_the_mean_of_the_old(tmp_path: Path) -> None:
    source, target = tiny(3), build_model(num_classes=5, **ANATOMY)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    expected = source.decoder.class_embed.weight.mean(0, keepdim=True).expand(5, -1)
    torch.testing.assert_close(target.decoder.class_embed.weight, expected)


@pytest.mark.parametrize(("before", "after", "lowered"), [(1, 4, math.log(4)), (3, 2, 0.0)])
def test_load_weights__more_classes_share_the_odds_of_an_object(
    tmp_path: Path, before: int, after: int, lowered: float
) -> None:
    source, target = tiny(before), build_model(num_classes=after, **ANATOMY)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    expected = (source.decoder.class_embed.bias.mean() - lowered).expand(after)
    torch.testing.assert_close(target.decoder.class_embed.bias, expected)


def test_build_model__takes_another_ffn_width_for_the_pixel_decoder() -> None:
    model = build_model(num_classes=2, **ANATOMY, pixel_decoder_ffn_dim=48)
    assert model.pixel_decoder.layers[0].linear1.out_features == 48
    assert model.decoder.layers[0].linear1.out_features == tiny(2).decoder.layers[0].linear1.out_features != 48


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04garbage"], ids=["empty", "text", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_weights__refuses_broken_files_by_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"weights{suffix}"):
        load_weights(tiny(2), path)


def test_load_bundled__rebuilds_the_model_from_its_file_alone(tmp_path: Path) -> None:
    source = tiny(1)
    save_bundled(source, tmp_path / "base.safetensors", ANATOMY, notes={"seed": "1"})
    model = load_bundled(4, path=tmp_path / "base.safetensors")
    assert model.num_classes == 4
    torch.testing.assert_close(model.pixel_decoder.level_embed, source.pixel_decoder.level_embed, atol=1e-3, rtol=1e-3)
    with pytest.raises(CheckpointError, match="missing"):
        load_bundled(path=tmp_path / "nothing.safetensors")


def test_save_described__says_which_model_it_holds_and_is_everyones_to_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.safetensors"
    save_with_metadata(tiny(2).state_dict(), path, CheckpointMetadata(ANATOMY, 96), notes={"seed": "1"})
    assert read_checkpoint_metadata(path) == CheckpointMetadata(ANATOMY, 96)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_read_description__is_none_for_files_of_others_and_refuses_damage(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name in ("plain.safetensors", "broken.safetensors", "missing.safetensors", "model.pth"):
        assert read_checkpoint_metadata(tmp_path / name) is None
    for header in ("{", "[]"):
        save_file({"a": torch.zeros(1)}, tmp_path / "damaged.safetensors", metadata={"vispeft_model": header})
        with pytest.raises(CheckpointError, match="damaged header"):
            read_checkpoint_metadata(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(("is_trained", "kept_dtype"), [(False, torch.bool), (True, torch.float32)])
def test_relu_before__keeps_signs_where_nothing_that_follows_is_trained(
    is_trained: bool, kept_dtype: torch.dtype
) -> None:
    following = nn.Linear(7, 2).requires_grad_(is_trained)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: (kept.append(saved), saved)[1], lambda saved: saved):
        y = relu_before(following, x)
    assert [saved.dtype for saved in kept] == [kept_dtype]
    assert torch.equal(y, x.relu())
    grad = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    grad[0] = torch.inf
    (ours,), (expected,) = (torch.autograd.grad(z, x, grad) for z in (y, x.relu()))
    assert torch.equal(ours, expected)
