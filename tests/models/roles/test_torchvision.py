"""Roles of torchvision's models: each names modules that run, or parameters of modules that are never called."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vispeft.models.roles import roles_for

torchvision = pytest.importorskip("torchvision")
models = torchvision.models
SMALL = {"weights": None, "weights_backbone": None, "num_classes": 3}
CNN = ("encoder.blocks", "encoder.conv1", "encoder.conv2", "encoder.conv3", "heads", "new")
ATTENTION = ("encoder.qkv", "encoder.proj", "encoder.fc1", "encoder.fc2")


class Wrapped(nn.Module):
    """A model of a user around the stages of torchvision's Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = models.SwinTransformer([4, 4], 24, [1, 1], [1, 2], [2, 2]).features
        self.head = nn.Conv2d(48, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = self.head(self.stages(images).permute(0, 3, 1, 2))
        return y


def _mask_rcnn() -> nn.Module:
    options = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "box_detections_per_img": 4}
    return models.detection.maskrcnn_resnet50_fpn(**SMALL, **options, rpn_post_nms_top_n_test=8)


# name -> builder and the roles that it must have
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "mask_rcnn": (_mask_rcnn, (*CNN, "class_head", "pyramid")),
    "retinanet": (
        lambda: models.detection.retinanet_resnet50_fpn(**SMALL, min_size=64, max_size=64),
        (*CNN, "class_head", "pyramid"),
    ),
    "deeplabv3": (lambda: models.segmentation.deeplabv3_resnet50(**SMALL, aux_loss=True), CNN),
    "fcn": (lambda: models.segmentation.fcn_resnet50(**SMALL), CNN),
    "vit": (lambda: models.VisionTransformer(64, 16, 2, 2, 32, 64), ("encoder.blocks", *ATTENTION)),
    "swin": (lambda: models.SwinTransformer([4, 4], 24, [1, 1], [1, 2], [2, 2]), ATTENTION),
    "convnext": (
        lambda: models.ConvNeXt([models.convnext.CNBlockConfig(24, 48, 1), models.convnext.CNBlockConfig(48, None, 1)]),
        ("encoder.blocks", "encoder.fc1", "encoder.fc2"),
    ),
    "resnet": (lambda: models.resnet18(), ("encoder.blocks", "encoder.conv1", "encoder.conv2")),
}


@pytest.mark.parametrize("name", MODELS)
def test_roles__name_modules_that_run(name: str, role_faults: Callable[..., list[str]]) -> None:
    build, needed = MODELS[name]
    model = build().eval()

    def run(model: nn.Module) -> Any:
        images = torch.zeros(1, 3, 64, 64)
        with torch.no_grad():
            return model([images[0]]) if name in ("mask_rcnn", "retinanet") else model(images)

    assert role_faults(model, roles_for(model), run, needed=needed) == []


def test_roles__none_where_the_blocks_have_other_names() -> None:
    assert roles_for(Wrapped()) == {}
