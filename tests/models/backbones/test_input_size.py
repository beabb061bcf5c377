"""Backbones at input sizes that they can and cannot take."""

import pytest
import timm
import torch

from vispeft.errors import ConfigError
from vispeft.models import build_model
from vispeft.models.backbones import input_size
from vispeft.models.backbones.input_size import check_image_size
from vispeft.models.backbones.timm_encoder import Backbone

# families that must be built for one input size, others that take any, and one per kind of window, stride and layout
FITTING = [
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    ("maxvit_pico_rw_256", {}),
    ("levit_128s", {}),
    ("xcit_nano_12_p16_224", {"depth": 3}),
    ("test_vit", {}),
    ("resnet18", {}),
]


@pytest.mark.parametrize(("name", "options"), FITTING, ids=[name for name, _ in FITTING])
@pytest.mark.parametrize("size", [64, 100])
def test_check_image_size__passes_what_the_whole_model_takes(name: str, options: dict[str, object], size: int) -> None:
    model = build_model("mask_dino", backbone=name, image_size=size, size="tiny", backbone_options=options).eval()
    check_image_size(model.backbone, size)
    side = -(-size // model.size_divisor) * model.size_divisor
    with torch.no_grad():
        assert model(torch.zeros(1, 3, side, side)).final.boxes.isfinite().all()


def test_check_image_size__names_a_size_that_is_taken() -> None:
    with pytest.raises(ConfigError) as error:
        check_image_size(Backbone("efficientformer_l1", image_size=64), 64)
    told = str(error.value)
    assert told.startswith("`backbone` efficientformer_l1 cannot take `image_size` 64 (")
    assert "It takes 224: set `image_size=224`" in told
    check_image_size(Backbone("efficientformer_l1", image_size=224), 224)


def test_check_image_size__refuses_maps_that_are_not_what_was_reported() -> None:
    backbone = Backbone("resnet18")
    backbone.strides = [1.0, 2.0, 4.0, 8.0]
    with pytest.raises(ConfigError, match=r"should give a map of \[1, 64, 64, 64\], but gives \[1, 64, 16, 16\]"):
        check_image_size(backbone, 64)
    backbone = Backbone("resnet18")
    backbone.channels = [64, 128, 256, 100]
    with pytest.raises(ConfigError, match=r"map of \[1, 100, 2, 2\], but gives \[1, 512, 2, 2\]"):
        check_image_size(backbone, 64)


def test_check_image_size__leaves_mode_weights_and_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone("resnet18").train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    for most in (1e20, 0.0):
        monkeypatch.setattr(input_size, "_MOST_FLOPS", most)
        check_image_size(backbone, 64)
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_check_image_size__computes_shapes_alone_of_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_size, "_MOST_FLOPS", 0.0)
    seen = []
    backbone = Backbone("test_vit")
    backbone.register_forward_hook(lambda module, inputs, maps: seen.append(type(maps[0]).__name__))
    check_image_size(backbone, 64)
    assert seen == ["FakeTensor"]
    with pytest.raises(ConfigError, match="efficientformer_l1 cannot take"):
        check_image_size(Backbone("efficientformer_l1", image_size=64), 64)


def test_backbone__is_built_for_the_padded_size() -> None:
    backbone = Backbone("swin_tiny_patch4_window7_224", image_size=100)
    assert backbone.body.patch_embed.img_size == (128, 128)
    assert Backbone("swin_tiny_patch4_window7_224", image_size=96).body.patch_embed.img_size == (96, 96)


def test_build_model__refuses_a_backbone_of_too_few_maps() -> None:
    with pytest.raises(ConfigError, match="is not usable as a multi-scale backbone here: it gives 2 maps"):
        build_model("mask_dino", backbone="crossvit_tiny_240", size="tiny")


@pytest.mark.parametrize("channels", [0, 13, True])
def test_build_model__refuses_channels_that_are_not_1_to_12(channels: int) -> None:
    with pytest.raises(ConfigError, match=r"`backbone_options\.in_chans` must be in 1\.\.12, but is"):
        build_model("mask_dino", backbone="test_vit", backbone_options={"in_chans": channels})


def test_build_model__says_why_pretrained_weights_are_not_had(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, *, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("cannot find the requested files.\nMore of it")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError) as error:
        build_model("mask_dino", backbone="test_vit", pretrained=True)
    assert str(error.value) == (
        "The pretrained weights of `backbone` 'test_vit' could not be fetched: cannot find the requested files. "
        "Connect to the network, or name a local file of them by `backbone_weights=FILE`."
    )
