"""Roles of models over encoders of several families."""

import pytest

from vispeft.models import build_model
from vispeft.models.roles import roles_for
from vispeft.peft import Names


@pytest.mark.parametrize("backbone", ["resnet18", "hiera_tiny_224", "mvitv2_tiny", "pvt_v2_b0", "vit_tiny_patch16_224"])
def test_roles__all_name_something(backbone: str) -> None:
    model = build_model("mask_dino", backbone=backbone, size="tiny", image_size=224, num_classes=2)
    names, roles = Names(model), roles_for(model)
    assert "encoder.blocks" in roles
    for role in roles:
        assert names.trained(f"@{role}", roles)
