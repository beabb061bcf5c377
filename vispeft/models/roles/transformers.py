"""Roles of the models in Hugging Face's transformers: those of encoders, and those of what stands behind an encoder.

Where a block's attention is torch's own, which reads its projections without calling them, a role is a parameter.
"""

from __future__ import annotations

from vispeft.models.roles.placement import Patterns

_QKV = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def _encoder(path: str, **parts: str | tuple[str, ...]) -> Patterns:
    """Return the roles `encoder.*` of blocks at a path. parts: role -> name inside a block, or several to try"""
    return {"encoder.blocks": path, **{f"encoder.{role}": _below(path, part) for role, part in parts.items()}}


def _below(path: str, name: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(name, tuple):
        return tuple(str(_below(path, each)) for each in name)
    return " | ".join(f"{path}.{part.strip()}" for part in name.split("|"))


def _attention(name: str, proj: str = "o_proj") -> dict[str, str]:
    """Return the projections of an attention. name: inside a block; proj: the last of them"""
    return {role: f"{name}.{part}" for role, part in {**_QKV, "proj": proj}.items()}


# up to version 4, attention and MLP have these names
_BERT = {
    **{role: f"attention.attention.{name}" for role, name in (("q", "query"), ("k", "key"), ("v", "value"))},
    "proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_FC1 = ("mlp.fc1", "mlp.gate_proj | mlp.up_proj", "mlp.up_proj", "mlp.weights_in", "intermediate.dense")
_FC2 = ("mlp.fc2", "mlp.down_proj", "mlp.weights_out", "output.dense")


def _vit(path: str) -> Patterns:
    """Return the roles of a ViT's blocks at a path, under the names of every version."""
    qkv = {role: (name, _BERT[role]) for role, name in _attention("attention").items() if role in _QKV}
    return _encoder(
        path, **qkv, proj=("attention.o_proj", "attention.out_proj", "attention.output.dense"), fc1=_FC1, fc2=_FC2
    )


_SWIN = _encoder(
    "layers.*.blocks.*",
    q=("attention.q_proj", "attention.self.query"),
    k=("attention.k_proj", "attention.self.key"),
    v=("attention.v_proj", "attention.self.value"),
    proj=("attention.o_proj", "attention.output.dense"),
    fc1=_FC1,
    fc2=_FC2,
)
_RESNET = _encoder("stages.*.layers.*", **{f"conv{i + 1}": f"layer.{i}.convolution" for i in (0, 1, 2)})
_CONVNEXT = _encoder("stages.*.layers.*", fc1=("pwconv1", "pointwise_conv1"), fc2=("pwconv2", "pointwise_conv2"))
_CLIP = _encoder("vision_model.encoder.layers.*", **_attention("self_attn", "out_proj"), fc1="mlp.fc1", fc2="mlp.fc2")
_SAM = _encoder("vision_encoder.layers.*", qkv="attn.qkv", proj="attn.proj", fc1="mlp.lin1", fc2="mlp.lin2")
_VIT = _vit("layers.*")
_VIT_LAYER = _vit("layer.*")


def _named(tables: dict[str, Patterns]) -> dict[str, Patterns]:
    """Return the tables by the module that defines the classes. Keys are `<folder>`, or `<folder>.<module>`."""
    named = {}
    for key, patterns in tables.items():
        folder, _, module = key.partition(".")
        named[f"transformers.models.{folder}.modeling_{module or folder}"] = patterns
    return named


ENCODERS: dict[str, Patterns] = _named(
    {
        "beit": _VIT,
        "clip": _CLIP,
        "clipseg": _CLIP,
        "convnext": _CONVNEXT,
        "convnextv2": _CONVNEXT,
        "data2vec.data2vec_vision": _VIT,
        "deit": _VIT,
        "dinov2": _VIT_LAYER,
        "dinov2_with_registers": _VIT_LAYER,
        "dinov3_convnext": _CONVNEXT,
        "dinov3_vit": _VIT_LAYER,
        "dpt": _VIT_LAYER,
        "eomt": _VIT,
        "eomt_dinov3": _VIT,
        "hgnet_v2": _encoder("stages.*.blocks.*", conv1="layers.*.convolution | layers.*.conv1.convolution"),
        "hiera": _encoder("stages.*.layers.*", qkv="attn.qkv", proj="attn.proj", fc1="mlp.fc1", fc2="mlp.fc2"),
        "maskformer.maskformer_swin": _SWIN,
        "mobilevit": _encoder("encoder.layer.*.transformer.layer.*", **_BERT),
        "owlv2": _CLIP,
        "pvt_v2": _encoder(
            "layers.*.blocks.*",
            q="attention.query",
            k="attention.key",
            v="attention.value",
            proj="attention.proj",
            fc1="mlp.dense1",
            fc2="mlp.dense2",
        ),
        "resnet": _RESNET,
        "rf_detr": _vit("backbone.backbone.encoder.layer.*"),
        "rt_detr.rt_detr_resnet": _RESNET,
        "sam": _SAM,
        "sam_hq": _SAM,
        "sam2": _encoder("blocks.*", qkv="attn.qkv", proj="attn.proj", fc1="mlp.proj_in", fc2="mlp.proj_out"),
        "sam3": _encoder("vision_encoder.backbone.layers.*", **_attention("attention"), fc1="mlp.fc1", fc2="mlp.fc2"),
        "segformer": _encoder("stages.*.blocks.*", **_attention("attention"), fc1="mlp.fc1", fc2="mlp.fc2"),
        "siglip": _CLIP,
        "swin": _SWIN,
        "swinv2": _SWIN,
        "vit": _VIT,
    }
)


def _layers(part: str, path: str, **names: str) -> Patterns:
    """Return the roles `<part>.*` of layers at a path. names: role -> name inside a layer"""
    return {f"{part}.{role}": f"{path}.{name}" for role, name in names.items()}


def _decoder(
    path: str, attention: str = "self_attn", proj: str = "o_proj", cross: str = "", mlp: str = "mlp."
) -> Patterns:
    """Return the roles of a decoder's layers, named as those of Mask DINO. cross: the cross-attention, if any"""
    return _attended("decoder", path, attention, proj, cross=cross, mlp=mlp)


def _attended(part: str, path: str, attention: str, proj: str, *, cross: str = "", mlp: str = "mlp.") -> Patterns:
    names = {**_QKV, "out": proj}
    roles = {f"{role}_proj": f"{attention}.{name}" for role, name in names.items()}
    if cross:
        roles |= {f"cross_{role}_proj": f"{cross}.{name}" for role, name in names.items()}
    return _layers(part, path, **roles, linear1=f"{mlp}fc1", linear2=f"{mlp}fc2")


_ANY_DEFORMABLE = {f"deformable.{name}": f"**.{name}" for name in _DEFORMABLE}
_PIXEL_DECODER = {
    **_ANY_DEFORMABLE,
    **_layers(
        "pixel_decoder",
        "pixel_level_module.decoder.encoder.layers.*",
        **{name: f"self_attn.{name}" for name in _DEFORMABLE},
        linear1="fc1",
        linear2="fc2",
    ),
}
_NECK = "encoder.layers.*"
_BOX_HEADS = "class_embed | bbox_embed"
_RT_DETR: Patterns = {
    **_ANY_DEFORMABLE,
    **_attended("neck", "encoder.aifi.*.layers.*", "self_attn", "o_proj"),
    **_decoder("model.decoder.layers.*"),
    "heads": "model.decoder.class_embed | model.decoder.bbox_embed | enc_score_head | enc_bbox_head",
    "class_head": "model.decoder.class_embed | enc_score_head",
}
_SAM_DECODER: Patterns = {
    **_decoder("mask_decoder.transformer.layers.*", proj="out_proj"),
    "heads": "mask_decoder.output_hypernetworks_mlps | mask_decoder.iou_prediction_head",
}
_GROUNDING: Patterns = {
    **_ANY_DEFORMABLE,
    "decoder.q_proj": "model.decoder.layers.*.self_attn.query",
    "decoder.k_proj": "model.decoder.layers.*.self_attn.key",
    "decoder.v_proj": "model.decoder.layers.*.self_attn.value",
    "decoder.out_proj": "model.decoder.layers.*.self_attn.out_proj",
    "decoder.linear1": "model.decoder.layers.*.fc1",
    "decoder.linear2": "model.decoder.layers.*.fc2",
    "heads": "bbox_embed | model.encoder_output_bbox_embed",
}
_EOMT: Patterns = {
    "queries": "query.weight",
    "upscale": "upscale_block",
    "heads": "class_predictor | mask_head",
    "class_head": "class_predictor",
    "new": "query.weight | upscale_block | class_predictor | mask_head",
}
_CLASSIFIER: Patterns = {"heads": "classifier", "class_head": "classifier", "new": "classifier"}
_DENSE: Patterns = {"heads": "decode_head | auxiliary_head", "class_head": "decode_head.classifier"}

MODELS: dict[str, Patterns] = _named(
    {
        "beit": {**_DENSE, "new": "fpn | decode_head | auxiliary_head"},
        "clipseg": {
            **_decoder("decoder.layers.*", proj="out_proj"),
            "new": "decoder",
        },
        "conditional_detr": {
            **_attended("neck", _NECK, "self_attn", "o_proj"),
            "decoder.v_proj": "model.decoder.layers.*.self_attn.v_proj",
            "decoder.out_proj": "model.decoder.layers.*.self_attn.o_proj",
            "decoder.linear1": "model.decoder.layers.*.mlp.fc1",
            "decoder.linear2": "model.decoder.layers.*.mlp.fc2",
            "heads": "class_labels_classifier | bbox_predictor",
            "class_head": "class_labels_classifier",
        },
        "d_fine": {
            **_RT_DETR,
            "neck.linear1": "encoder.aifi.*.layers.*.mlp.layers.0",
            "neck.linear2": "encoder.aifi.*.layers.*.mlp.layers.1",
            "decoder.linear1": "model.decoder.layers.*.mlp.layers.0",
            "decoder.linear2": "model.decoder.layers.*.mlp.layers.1",
        },
        "deformable_detr": {
            **_ANY_DEFORMABLE,
            **_layers(
                "neck",
                _NECK,
                **{name: f"self_attn.{name}" for name in _DEFORMABLE},
                linear1="mlp.fc1",
                linear2="mlp.fc2",
            ),
            **_decoder("model.decoder.layers.*"),
            "heads": _BOX_HEADS,
            "class_head": "class_embed",
        },
        "depth_anything": {"heads": "head", "new": "neck | head"},
        "detr": {
            **_attended("neck", "model.encoder.layers.*", "self_attn", "o_proj"),
            **_decoder("model.decoder.layers.*", cross="encoder_attn"),
            "heads": "class_labels_classifier | bbox_predictor | mask_head | bbox_attention",
            "class_head": "class_labels_classifier",
        },
        "dpt": {"heads": "head | auxiliary_head", "new": "neck | head | auxiliary_head"},
        "eomt": _EOMT,
        "eomt_dinov3": _EOMT,
        "grounding_dino": _GROUNDING,
        "mask2former": {
            **_PIXEL_DECODER,
            **_decoder("transformer_module.decoder.layers.*", proj="out_proj", mlp=""),
            "decoder.cross_qkv": "transformer_module.decoder.layers.*.cross_attn.in_proj_weight",
            "decoder.cross_out_proj": "transformer_module.decoder.layers.*.cross_attn.out_proj.weight",
            "heads": "class_predictor | transformer_module.decoder.mask_predictor",
            "class_head": "class_predictor",
            "new": "pixel_level_module.decoder | transformer_module | class_predictor",
        },
        "maskformer": {
            **_decoder("transformer_module.decoder.layers.*", cross="encoder_attn"),
            "heads": "class_predictor | mask_embedder",
            "class_head": "class_predictor",
            "new": "pixel_level_module.decoder | transformer_module | class_predictor | mask_embedder",
        },
        "mm_grounding_dino": _GROUNDING,
        "mobilevit": {"heads": "segmentation_head", "new": "segmentation_head"},
        "oneformer": {
            **_PIXEL_DECODER,
            **_decoder("transformer_module.decoder.layers.*", "self_attn.self_attn", "out_proj"),
            "decoder.linear1": "transformer_module.decoder.layers.*.ffn.linear1",
            "decoder.linear2": "transformer_module.decoder.layers.*.ffn.linear2",
            "decoder.cross_qkv": "transformer_module.decoder.layers.*.cross_attn.multihead_attn.in_proj_weight",
            "decoder.cross_out_proj": "transformer_module.decoder.layers.*.cross_attn.multihead_attn.out_proj.weight",
            "heads": "transformer_module.decoder.class_embed | transformer_module.decoder.mask_embed",
            "class_head": "transformer_module.decoder.class_embed",
            "new": "pixel_level_module.decoder | transformer_module",
        },
        "owlv2": {"heads": "class_head | box_head | objectness_head", "class_head": "class_head"},
        "pvt_v2": _CLASSIFIER,
        "rf_detr": {
            **_ANY_DEFORMABLE,
            **_decoder("decoder.layers.*"),
            "heads": f"{_BOX_HEADS} | blocks | spatial_features_proj | query_features_block | query_features_proj",
            "class_head": "class_embed",
        },
        "rt_detr": _RT_DETR,
        "rt_detr_v2": _RT_DETR,
        "sam": _SAM_DECODER,
        "sam_hq": _SAM_DECODER,
        "sam2": {**_SAM_DECODER, **_decoder("mask_decoder.transformer.layers.*")},
        "sam3": {
            **_attended("neck", "detr_encoder.layers.*", "self_attn", "o_proj", cross="cross_attn"),
            **_decoder("detr_decoder.layers.*", cross="vision_cross_attn"),
            "heads": "detr_decoder.box_head | detr_decoder.presence_head | mask_decoder | dot_product_scoring",
        },
        "segformer": {**_DENSE, "heads": "decode_head", "new": "decode_head"},
        "swin": _CLASSIFIER,
        "swinv2": _CLASSIFIER,
        "upernet": {**_DENSE, "new": "decode_head | auxiliary_head"},
        "vit": _CLASSIFIER,
    }
)
