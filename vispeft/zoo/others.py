"""Further models of transformers, which answer for panoptic classes."""

from __future__ import annotations

from vispeft.zoo.entry import MIT, NOT_CONFIRMED, ZooModel

_INPUT = "that of its image processor"
_RECIPE = "transformers_lora.yaml"

OTHERS: tuple[ZooModel, ...] = (
    ZooModel(
        name="hf_oneformer_swin_l",
        title="OneFormer of transformers, Swin-L, COCO panoptic",
        family="transformers",
        weights="hf://shi-labs/oneformer_coco_swin_large",
        source="https://github.com/SHI-Labs/OneFormer",
        licence=MIT,
        millions=219.0,
        mask_ap=49.0,
        input_rule=_INPUT,
        image_size=1333,
        recipe=_RECIPE,
        takes_coco_classes=False,
        note="133 panoptic classes; PQ 57.9 by its authors, who count the parameters.",
    ),
    ZooModel(
        name="hf_maskformer_swin_l",
        title="MaskFormer of transformers, Swin-L, COCO panoptic",
        family="transformers",
        weights="hf://facebook/maskformer-swin-large-coco",
        source="https://huggingface.co/facebook/maskformer-swin-large-coco",
        licence=NOT_CONFIRMED,
        millions=None,
        mask_ap=None,
        input_rule=_INPUT,
        image_size=1333,
        recipe="transformers_lora.yaml",
        takes_coco_classes=False,
        note='133 panoptic classes. The hub lists the licence as "other".',
    ),
)
