"""Roles of transformers' models: each names modules that run, or parameters of modules that are never called."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vispeft.models.roles import roles_for

t = pytest.importorskip("transformers", minversion="5.0")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 64}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
SWIN |= {"window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
DETR |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5, "num_labels": 3}
MASK = {"hidden_dim": 32, "encoder_feedforward_dim": 32, "encoder_layers": 1, "num_attention_heads": 2}
MASK |= {"dim_feedforward": 32, "train_num_points": 64, "num_labels": 3}
PROMPTS = {"hidden_size": 32, "patch_size": 16, "mask_input_channels": 4}
MASK_DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**CLIP, "vocab_size": 100, "max_position_embeddings": 8, "eos_token_id": 99, "bos_token_id": 98}
EOMT = {**VIT, "num_hidden_layers": 3, "num_blocks": 1, "num_queries": 5, "num_upscale_blocks": 1, "num_labels": 3}

ATTENTION = tuple(f"encoder.{name}" for name in ("blocks", "q", "k", "v", "proj", "fc1", "fc2"))
FUSED = tuple(f"encoder.{name}" for name in ("blocks", "qkv", "proj", "fc1", "fc2"))
CNN = ("encoder.blocks", "encoder.conv1")
DECODER = tuple(f"decoder.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
DEFORMABLE = ("deformable.sampling_offsets", "deformable.attention_weights")
HEADS = ("heads", "class_head")
WHOLE = (*DECODER, *HEADS, "new")


def _mask2former() -> nn.Module:
    config = t.Mask2FormerConfig(
        backbone_config=t.SwinConfig(**SWIN), feature_size=32, mask_feature_size=32, num_queries=5, **MASK
    )
    config.decoder_layers = 2
    return t.Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> nn.Module:
    decoder = t.DetrConfig(**DETR)
    config = t.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=t.SwinConfig(**SWIN), decoder_config=decoder
    )
    return t.MaskFormerForInstanceSegmentation(config)


def _oneformer() -> nn.Module:
    text = {"width": 32, "context_length": 8, "num_layers": 1, "vocab_size": 100, "proj_layers": 1, "n_ctx": 2}
    config = t.OneFormerConfig(
        backbone_config=t.SwinConfig(**SWIN),
        num_queries=6,
        task_seq_len=8,
        conv_dim=32,
        mask_dim=32,
        decoder_layers=3,
        query_dec_layers=1,
        **{f"text_encoder_{key}": value for key, value in text.items()},
        **MASK,
    )
    return t.OneFormerForUniversalSegmentation(config)


def _detr() -> nn.Module:
    backbone = t.ResNetConfig(**RESNET, out_features=["stage4"])
    return t.DetrForObjectDetection(t.DetrConfig(backbone_config=backbone, **DETR))


def _deformable_detr() -> nn.Module:
    backbone = t.ResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    options = {"num_feature_levels": 3, "disable_custom_kernels": True}
    return t.DeformableDetrForObjectDetection(t.DeformableDetrConfig(backbone_config=backbone, **DETR, **options))


def _rt_detr() -> nn.Module:
    backbone = t.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    options = {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32]}
    config = t.RTDetrConfig(backbone_config=backbone, **DETR, **options, num_denoising=4, hidden_expansion=0.5)
    return t.RTDetrForObjectDetection(config)


def _d_fine() -> nn.Module:
    sizes = {"hidden_sizes": [16, 16, 24, 32], "stem_channels": [3, 8, 8], "embedding_size": 8, "depths": [1, 1, 1, 1]}
    stages = {
        "in_channels": [8, 16, 16, 24],
        "mid_channels": [8, 8, 8, 8],
        "out_channels": [16, 16, 24, 32],
        "num_blocks": [1, 1, 1, 1],
        "downsample": [False, True, True, True],
        "light_block": [False, False, True, True],
        "kernel_size": [3, 3, 5, 5],
        "numb_of_layers": [2, 2, 2, 2],
    }
    backbone = t.HGNetV2Config(
        **sizes, **{f"stage_{key}": value for key, value in stages.items()}, out_features=["stage2", "stage3", "stage4"]
    )
    options = {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32]}
    options |= {"num_denoising": 4, "head_dim": 16, "lqe_hidden_dim": 8, "hidden_expansion": 0.5}
    return t.DFineForObjectDetection(t.DFineConfig(backbone_config=backbone, **DETR, **options))


def _segformer() -> nn.Module:
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 2, 2, 2]}
    return t.SegformerForSemanticSegmentation(t.SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=3))


def _sam() -> nn.Module:
    vision = {**VIT, "output_channels": 32, "global_attn_indexes": [1], "window_size": 2, "num_pos_feats": 16}
    prompts = {**PROMPTS, "image_size": 64, "image_embedding_size": 4}
    config = t.SamConfig(
        vision_config={**vision, "mlp_dim": 64}, prompt_encoder_config=prompts, mask_decoder_config=MASK_DECODER
    )
    return t.SamModel(config)


def _sam2() -> nn.Module:
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {"backbone_config": hiera, "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32}
    config = t.Sam2Config(
        vision_config={**vision, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        prompt_encoder_config={**PROMPTS, "image_size": 64},
        mask_decoder_config=MASK_DECODER,
    )
    return t.Sam2Model(config)


def _clipseg() -> nn.Module:
    vision = {**CLIP, "image_size": 64, "patch_size": 16}
    config = t.CLIPSegConfig(
        text_config={**TEXT, "pad_token_id": 0},
        vision_config=vision,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return t.CLIPSegForImageSegmentation(config)


def _dpt() -> nn.Module:
    sizes = {**VIT, "num_hidden_layers": 4, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
    return t.DPTForSemanticSegmentation(t.DPTConfig(**sizes, backbone_out_indices=[0, 1, 2, 3], num_labels=3))


def _beit() -> nn.Module:
    sizes = {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 8, "num_labels": 3}
    return t.BeitForSemanticSegmentation(t.BeitConfig(**sizes, use_relative_position_bias=True))


def _upernet() -> nn.Module:
    options = {"hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 24, "num_labels": 3}
    backbone = t.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    return t.UperNetForSemanticSegmentation(t.UperNetConfig(backbone_config=backbone, **options))


# name -> builder and the roles that it must have
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "mask2former": (_mask2former, (*ATTENTION, *WHOLE, *DEFORMABLE, "decoder.cross_qkv", "pixel_decoder.linear1")),
    "maskformer": (_maskformer, (*ATTENTION, *WHOLE, "decoder.cross_q_proj")),
    "oneformer": (_oneformer, (*ATTENTION, *WHOLE, *DEFORMABLE, "decoder.cross_qkv")),
    "eomt": (lambda: t.EomtForUniversalSegmentation(t.EomtConfig(**EOMT)), (*ATTENTION, *HEADS, "queries", "new")),
    "eomt_dinov3": (
        lambda: t.EomtDinov3ForUniversalSegmentation(t.EomtDinov3Config(**EOMT)),
        (*ATTENTION, *HEADS, "queries", "new"),
    ),
    "detr": (_detr, (*CNN, *DECODER, *HEADS, "neck.q_proj", "decoder.cross_q_proj")),
    "deformable_detr": (_deformable_detr, (*CNN, *DECODER, *DEFORMABLE, *HEADS, "neck.value_proj")),
    "rt_detr": (_rt_detr, (*CNN, *DECODER, *DEFORMABLE, *HEADS, "neck.q_proj")),
    "d_fine": (_d_fine, (*CNN, *DECODER, *DEFORMABLE, *HEADS, "neck.linear1", "decoder.linear2")),
    "segformer": (_segformer, (*ATTENTION, *HEADS, "new")),
    "sam": (_sam, (*FUSED, *DECODER, "heads")),
    "sam2": (_sam2, (*FUSED, *DECODER, "heads")),
    "clipseg": (_clipseg, (*ATTENTION, *DECODER, "new")),
    "dpt": (_dpt, (*ATTENTION, "heads", "new")),
    "beit": (_beit, (*ATTENTION, *HEADS, "new")),
    "upernet": (_upernet, ("encoder.blocks", "encoder.fc1", "encoder.fc2", *HEADS, "new")),
    "vit": (lambda: t.ViTForImageClassification(t.ViTConfig(**VIT)), (*ATTENTION, *HEADS)),
    "dinov2": (lambda: t.Dinov2Model(t.Dinov2Config(**{**VIT, "image_size": 56})), ATTENTION),
    "dinov2_swiglu": (
        lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**{**VIT, "image_size": 56}, use_swiglu_ffn=True)
        ),
        ATTENTION,
    ),
    "dinov3_vit": (lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**VIT)), ATTENTION),
    "swin": (lambda: t.SwinForImageClassification(t.SwinConfig(**SWIN)), (*ATTENTION, *HEADS)),
    "swinv2": (
        lambda: t.Swinv2ForImageClassification(t.Swinv2Config(**SWIN)),
        (*ATTENTION, *HEADS),
    ),
}


def _inputs(name: str) -> dict[str, Any]:
    """Return the inputs of a model."""
    images = torch.zeros(1, 3, 56 if "dinov2" in name else 64, 56 if "dinov2" in name else 64)
    inputs: dict[str, Any] = {"pixel_values": images}
    if name.startswith("sam"):
        inputs["input_points"] = torch.tensor([[[[10.0, 20.0]]]])
    if name == "clipseg":
        inputs |= {"input_ids": torch.tensor([[1, 2, 99]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    if name == "oneformer":
        inputs["task_inputs"] = torch.ones(1, 8, dtype=torch.long)
    return inputs


@pytest.mark.parametrize("name", MODELS)
def test_roles__name_modules_that_run(name: str, role_faults: Callable[..., list[str]]) -> None:
    build, needed = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        faults = role_faults(model, roles_for(model), lambda model: model(**_inputs(name)), needed=needed)
    assert faults == []


def test_roles__of_a_model_inside_another() -> None:
    model = nn.ModuleDict({"net": t.ViTModel(t.ViTConfig(**VIT)), "head": nn.Linear(32, 2)})
    assert roles_for(model)["encoder.q"] == "net.layers.*.attention.q_proj"
