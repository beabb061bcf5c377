"""Mask DINO's published checkpoints for COCO instances, and the bundled base."""

from __future__ import annotations

from vispeft.zoo.entry import APACHE, ZooModel

_SOURCE = "https://github.com/IDEA-Research/MaskDINO"
_RELEASE = "https://github.com/IDEA-Research/detrex-storage/releases/download/maskdino-v0.1.0"
_INPUT = "shorter side 800, longer side at most 1333 px"
_STUDY = "The recipe has the sites and rates of the 2024 study."

MASK_DINO: tuple[ZooModel, ...] = (
    ZooModel(
        name="bundled",
        title="Mask DINO, EfficientNet-Lite0 and ViT, photographs",
        family="mask_dino",
        weights="bundled",
        source="https://github.com/IDEA-Research/MaskDINO (the method)",
        licence=APACHE,
        millions=7.2,
        mask_ap=None,
        input_rule="longer side 256 px",
        image_size=256,
        recipe="bundled_lora.yaml",
        takes_coco_classes=False,
        note="Comes with the package, with 144 classes of photographs.",
    ),
    ZooModel(
        name="mask_dino_r50",
        title="Mask DINO, ResNet-50, COCO",
        family="mask_dino",
        weights=f"{_RELEASE}/maskdino_r50_50ep_300q_hid2048_3sd1_instance_maskenhanced_mask46.3ap_box51.7ap.pth",
        source=_SOURCE,
        licence=APACHE,
        millions=52.1,
        mask_ap=46.3,
        input_rule=_INPUT,
        image_size=1333,
        recipe="paper_maskdino_r50_lora.yaml",
        arguments={"backbone": "resnet50", "size": "base"},
        note=f"50 epochs. {_STUDY}",
    ),
    ZooModel(
        name="mask_dino_swin_l",
        title="Mask DINO, Swin-L, COCO",
        family="mask_dino",
        weights=f"{_RELEASE}/maskdino_swinl_50ep_300q_hid2048_3sd1_instance_maskenhanced_mask52.3ap_box59.0ap.pth",
        source=_SOURCE,
        licence=APACHE,
        millions=222.8,
        mask_ap=52.3,
        input_rule=_INPUT,
        image_size=1333,
        recipe="paper_maskdino_swinl_lora.yaml",
        arguments={"backbone": "swin_large_patch4_window12_384", "size": "large"},
        note=f"50 epochs; encoder pretrained on ImageNet-22k. {_STUDY}",
    ),
)
