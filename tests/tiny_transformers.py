"""Tiny models of transformers with random weights, written as directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

IMAGE_SIZE = 64
NUM_QUERIES = 12


def write_directory(model_type: str, path: Path) -> None:
    """Write a directory of a model type, for 3 classes and images of 64 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _NETWORKS[model_type]()
    network.save_pretrained(path)
    if model_type.startswith("sam3"):
        _tokenizer().save_pretrained(path)
    processor = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.25],
        "size": {"shortest_edge": 48, "longest_edge": IMAGE_SIZE},
        "size_divisor": 32,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))


def _swin() -> Any:
    return transformers.SwinConfig(
        image_size=IMAGE_SIZE,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=2,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _mask2former() -> Any:
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "dim_feedforward": 32}
    depths = {"encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2}
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(), num_queries=NUM_QUERIES, train_num_points=64, num_labels=3, **sizes, **depths
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> Any:
    decoder = transformers.DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=NUM_QUERIES,
        dropout=0.0,
    )
    config = transformers.MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=_swin(),
        decoder_config=decoder,
        use_auxiliary_loss=True,
        num_labels=3,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def _oneformer() -> Any:
    text = {"text_encoder_width": 32, "text_encoder_context_length": 8, "text_encoder_num_layers": 1}
    vocabulary = {"text_encoder_vocab_size": 100, "text_encoder_proj_layers": 1, "text_encoder_n_ctx": 2}
    sizes = {"conv_dim": 32, "mask_dim": 32, "hidden_dim": 32, "dim_feedforward": 32, "encoder_feedforward_dim": 32}
    depths = {"encoder_layers": 1, "decoder_layers": 3, "query_dec_layers": 1, "num_attention_heads": 2}
    config = transformers.OneFormerConfig(
        backbone_config=_swin(),
        num_queries=NUM_QUERIES,
        train_num_points=64,
        num_labels=3,
        **text,
        **vocabulary,
        **sizes,
        **depths,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


_EOMT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "num_blocks": 2,
    "num_queries": NUM_QUERIES,
    "num_upscale_blocks": 1,
    "train_num_points": 64,
    "num_labels": 3,
}


def _eomt() -> Any:
    return transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**_EOMT))


def _eomt_dinov3() -> Any:
    config = transformers.EomtDinov3Config(intermediate_size=48, **_EOMT)
    return transformers.EomtDinov3ForUniversalSegmentation(config)


def _tokenizer() -> Any:
    """A tokenizer without merges: every letter is a token."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def _sam3_config() -> Any:
    vit = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    grid = {"image_size": IMAGE_SIZE, "patch_size": 8, "pretrain_image_size": 32, "window_size": 4}
    layers = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {"vocab_size": 74, "hidden_size": 32, "intermediate_size": 48, "projection_dim": 16}
    text_layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    ends = {"bos_token_id": 72, "eos_token_id": 73, "pad_token_id": 73}
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": {"model_type": "sam3_vit_model", "global_attn_indexes": [1], **vit, **grid},
        "fpn_hidden_size": 32,
    }
    return transformers.Sam3Config(
        vision_config=vision,
        text_config={"model_type": "clip_text_model", **text, **text_layers, **ends},
        geometry_encoder_config={**layers, "num_layers": 1},
        detr_encoder_config=dict(layers),
        detr_decoder_config={**layers, "num_queries": NUM_QUERIES},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )


def _sam3() -> Any:
    return transformers.Sam3Model(_sam3_config())


_NETWORKS = {
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "oneformer": _oneformer,
    "eomt": _eomt,
    "eomt_dinov3": _eomt_dinov3,
    "sam3": _sam3,
}
