"""Roles of timm's families, alone and as our models' encoders: each names modules that run."""

from collections.abc import Callable

import pytest
import timm
import torch

from vispeft.models import build_model
from vispeft.models.roles import roles_for
from vispeft.models.roles.timm import FAMILIES, encoder_roles
from vispeft.peft import Names

# small models of each timm family
TIMM = {
    "beit": ("beit_base_patch16_224",),
    "byoanet": ("halonet26t",),
    "byobnet": ("test_byobnet", "repvgg_a0"),
    "cait": ("cait_xxs24_224",),
    "coat": ("coat_tiny",),
    "convit": ("convit_tiny",),
    "convnext": ("test_convnext",),
    "crossvit": ("crossvit_tiny_240",),
    "cspnet": ("darknet17",),
    "cspnext": ("cspnext_tiny",),
    "davit": ("davit_tiny",),
    "deepseek_vit": ("deepseek_vit_412m",),
    "deit": ("deit_tiny_patch16_224",),
    "densenet": ("densenet121",),
    "edgenext": ("edgenext_xx_small",),
    "efficientformer": ("efficientformer_l1",),
    "efficientformer_v2": ("efficientformerv2_s0",),
    "efficientnet": ("test_efficientnet", "efficientnet_b0", "tf_efficientnetv2_b0"),
    "efficientvim": ("efficientvim_m1",),
    "efficientvit_mit": ("efficientvit_b0",),
    "efficientvit_msra": ("efficientvit_m0",),
    "eva": ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"),
    "fasternet": ("fasternet_t0",),
    "fastvit": ("fastvit_t8", "fastvit_sa12"),
    "focalnet": ("focalnet_tiny_srf",),
    "gcvit": ("gcvit_xxtiny",),
    "gemma4_vit": ("gemma4_vit_167m",),
    "ghostnet": ("ghostnet_050",),
    "hardcorenas": ("hardcorenas_a",),
    "hgnet": ("hgnetv2_b0",),
    "hiera": ("hiera_tiny_224",),
    "hieradet_sam2": ("sam2_hiera_tiny",),
    "hrnet": ("hrnet_w18_small",),
    "iformer": ("iformer_t",),
    "inception_next": ("inception_next_atto",),
    "levit": ("levit_128", "levit_conv_128s"),
    "mambaout": ("test_mambaout",),
    "maxxvit": ("test_maxvit", "coatnet_pico_rw_224"),
    "metaformer": ("caformer_s18", "poolformer_s12"),
    "mlp_mixer": ("mixer_s32_224",),
    "mobilenetv3": ("lcnet_035", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "mobilenetv3_small_050"),
    "mobilenetv5": ("mobilenetv5_300m",),
    "mobilevit": ("mobilevit_xxs",),
    "mvitv2": ("mvitv2_tiny",),
    "naflexvit": ("naflexvit_base_patch16_gap",),
    "nest": ("nest_tiny",),
    "nextvit": ("nextvit_small",),
    "nfnet": ("test_nfnet",),
    "pit": ("pit_xs_224",),
    "pvt_v2": ("pvt_v2_b0",),
    "qwen3_vit": ("qwen3_vit_88m",),
    "regnet": ("regnetx_002", "regnetv_040"),
    "repghost": ("repghostnet_050",),
    "repvit": ("repvit_m1_0",),
    "res2net": ("res2net50_14w_8s",),
    "resnest": ("resnest14d",),
    "resnet": ("test_resnet", "resnet18"),
    "resnetv2": ("resnetv2_18",),
    "rexnet": ("rexnet_100",),
    "senet": ("legacy_seresnet18",),
    "shvit": ("shvit_s1",),
    "sknet": ("skresnet18",),
    "starnet": ("starnet_s050",),
    "swiftformer": ("swiftformer_xs",),
    "swin_transformer": ("swin_tiny_patch4_window7_224",),
    "swin_transformer_v2": ("swinv2_tiny_window8_256",),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224",),
    "tiny_vit": ("tiny_vit_5m_224",),
    "tnt": ("tnt_s_patch16_224",),
    "tresnet": ("tresnet_m",),
    "twins": ("twins_svt_small", "twins_pcpvt_small"),
    "visformer": ("visformer_tiny",),
    "vision_transformer": ("test_vit", "vit_small_patch14_dinov2"),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224",),
    "vision_transformer_relpos": ("test_vit_relpos",),
    "vision_transformer_sam": ("samvit_base_patch16",),
    "vitamin": ("vitamin_small_224",),
    "volo": ("volo_d1_224",),
    "vovnet": ("vovnet39a",),
    "xcit": ("xcit_nano_12_p8_224",),
}
# a group of families shares one test: the cost is in the forward passes
GROUPS = {letters: [name for name in TIMM if name[0] in letters] for letters in ("bc", "defg", "hilmn", "pqrst", "vx")}


@pytest.mark.parametrize("backbone", ["resnet18", "hiera_tiny_224", "mvitv2_tiny", "pvt_v2_b0", "vit_tiny_patch16_224"])
def test_roles__all_name_something(backbone: str) -> None:
    model = build_model("mask_dino", backbone=backbone, size="tiny", image_size=224, num_classes=2)
    names, roles = Names(model), roles_for(model)
    assert "encoder.blocks" in roles
    for role in roles:
        assert names.trained(f"@{role}", roles)


def test_roles__every_timm_family_is_in_the_test() -> None:
    # our own hybrid has tests of its own
    assert {f"timm.models.{name}" for name in TIMM} | {"vispeft.models.backbones.hybrid"} == set(FAMILIES)


@pytest.mark.parametrize("letters", GROUPS)
def test_roles__of_timm_models_name_modules_that_run(letters: str, role_faults: Callable[..., list[str]]) -> None:
    faults = {}
    for name in (name for family in GROUPS[letters] for name in TIMM[family]):
        with torch.device("meta"):
            model = timm.create_model(name).eval()
        images = torch.zeros(1, *model.default_cfg["input_size"], device="meta")
        faults[name] = role_faults(
            model, roles_for(model), lambda m, images=images: m(images), needed=("encoder.blocks",)
        )
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize("name", ["maxvit_pico_rw_256", "davit_tiny", "resnet18", "efficientnet_b0"])
def test_roles__of_feature_backbones(name: str, role_faults: Callable[..., list[str]]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True).eval()
    roles = encoder_roles(timm.model_entrypoint(name).__module__, model)
    images = torch.zeros(1, 3, 256, 256, device="meta")
    assert role_faults(model, roles, lambda m: m(images), needed=("encoder.blocks",)) == []
