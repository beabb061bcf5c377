"""EoMT's and PMT's published checkpoints for COCO instances."""

from __future__ import annotations

from vispeft.zoo.entry import MIT, NOT_CONFIRMED, ZooModel

_EOMT = "https://github.com/tue-mps/eomt/blob/master/model_zoo/dinov2.md"
_PMT = "https://github.com/tue-mps/pmt/blob/master/model_zoo/image/dinov3.md"


def _eomt(side: int, millions: float, mask_ap: float) -> ZooModel:
    return ZooModel(
        name=f"eomt_l_{side}",
        title=f"EoMT, ViT-L of DINOv2 with registers, COCO, {side} px",
        family="eomt",
        weights=f"hf://tue-mps/coco_instance_eomt_large_{side}/pytorch_model.bin",
        source=_EOMT,
        licence=MIT,
        millions=millions,
        mask_ap=mask_ap,
        input_rule=f"longer side {side} px, padded to a square",
        image_size=side,
        recipe="eomt_lora.yaml",
        arguments={
            "backbone": "vit_large_patch14_reg4_dinov2",
            "size": "base",
            "backbone_options": {"patch_size": 16, "img_size": side},
        },
        note="The authors' score is pycocotools'.",
    )


def _pmt(side: int, mask_ap: float) -> ZooModel:
    return ZooModel(
        name=f"pmt_l_{side}",
        title=f"PMT, frozen ViT-L of DINOv3, COCO, {side} px",
        family="pmt",
        weights=f"hf://tue-mps/coco_instance_pmt_large_{side}_dinov3/pytorch_model.bin",
        source=_PMT,
        licence=NOT_CONFIRMED,
        millions=357.0,
        mask_ap=mask_ap,
        input_rule=f"longer side {side} px, padded to a square",
        image_size=side,
        recipe="pmt_decoder.yaml",
        arguments={"backbone": "vit_large_patch16_dinov3.lvd1689m", "size": "base"},
        has_timm_encoder=True,
        note="The file holds the decoder; timm has the encoder, under the DINOv3 licence.",
    )


PLAIN: tuple[ZooModel, ...] = (_eomt(640, 316.6, 45.2), _eomt(1280, 321.6, 48.8), _pmt(640, 45.4), _pmt(1280, 49.0))
