"""Mask2Former's published checkpoints for COCO instances: the authors' files and the directories of transformers."""

from __future__ import annotations

from vispeft.zoo.entry import NON_COMMERCIAL, NOT_CONFIRMED, ZooModel

_SOURCE = "https://github.com/facebookresearch/Mask2Former/blob/main/MODEL_ZOO.md"
_FILES = "https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/instance"
_INPUT = "shorter side 800, longer side at most 1333 px"
_HUB_INPUT = "that of its image processor"
_RECIPE = "mask2former_lora.yaml"


def _official(
    name: str, title: str, file: str, millions: float, mask_ap: float, backbone: str, **size: str
) -> ZooModel:
    """Return a checkpoint of the authors. Names of the files carry the first digits of their MD5."""
    return ZooModel(
        name=name,
        title=f"Mask2Former, {title}, COCO",
        family="mask2former",
        weights=f"{_FILES}/{file}",
        source=_SOURCE,
        licence=NON_COMMERCIAL,
        millions=millions,
        mask_ap=mask_ap,
        input_rule=_INPUT,
        image_size=1333,
        recipe=_RECIPE,
        arguments={"backbone": backbone, "size": "base", **size},
    )


def _of_hub(name: str, title: str, repository: str, millions: float, mask_ap: float | None, note: str = "") -> ZooModel:
    """Return a directory of transformers."""
    return ZooModel(
        name=name,
        title=f"Mask2Former of transformers, {title}, COCO",
        family="transformers",
        weights=f"hf://{repository}",
        source=f"https://huggingface.co/{repository}",
        licence=NOT_CONFIRMED,
        millions=millions,
        mask_ap=mask_ap,
        input_rule=_HUB_INPUT,
        image_size=1333,
        recipe="transformers_mask2former_lora.yaml",
        note=note or 'The hub lists the licence as "other"; that of the authors\' checkpoints is CC-BY-NC-4.0.',
    )


MASK2FORMER: tuple[ZooModel, ...] = (
    _official(
        "mask2former_r50",
        "ResNet-50",
        "maskformer2_R50_bs16_50ep/model_final_3c8ec9.pkl",
        44.0,
        43.7,
        "resnet50",
    ),
    _official(
        "mask2former_r101",
        "ResNet-101",
        "maskformer2_R101_bs16_50ep/model_final_eba159.pkl",
        63.0,
        44.2,
        "resnet101",
    ),
    _official(
        "mask2former_swin_t",
        "Swin-T",
        "maskformer2_swin_tiny_bs16_50ep/model_final_86143f.pkl",
        47.4,
        45.0,
        "swin_tiny_patch4_window7_224",
    ),
    _official(
        "mask2former_swin_s",
        "Swin-S",
        "maskformer2_swin_small_bs16_50ep/model_final_1e7f22.pkl",
        68.7,
        46.3,
        "swin_small_patch4_window7_224",
    ),
    _official(
        "mask2former_swin_b",
        "Swin-B",
        "maskformer2_swin_base_384_bs16_50ep/model_final_f6e0f6.pkl",
        106.9,
        46.7,
        "swin_base_patch4_window12_384",
    ),
    _official(
        "mask2former_swin_b_in21k",
        "Swin-B of ImageNet-21k",
        "maskformer2_swin_base_IN21k_384_bs16_50ep/model_final_83d103.pkl",
        106.9,
        48.1,
        "swin_base_patch4_window12_384",
    ),
    _official(
        "mask2former_swin_l",
        "Swin-L of ImageNet-21k",
        "maskformer2_swin_large_IN21k_384_bs16_100ep/model_final_e5f453.pkl",
        215.5,
        50.1,
        "swin_large_patch4_window12_384",
        size="large",
    ),
    _of_hub("hf_mask2former_swin_t", "Swin-T", "facebook/mask2former-swin-tiny-coco-instance", 47.4, 45.0),
    _of_hub("hf_mask2former_swin_s", "Swin-S", "facebook/mask2former-swin-small-coco-instance", 68.7, 46.3),
    _of_hub(
        "hf_mask2former_swin_b",
        "Swin-B",
        "facebook/mask2former-swin-base-coco-instance",
        106.9,
        None,
        "Not confirmed which of the authors' two Swin-B checkpoints it is (46.7 or 48.1 mask AP).",
    ),
    _of_hub("hf_mask2former_swin_l", "Swin-L", "facebook/mask2former-swin-large-coco-instance", 215.5, 50.1),
)
