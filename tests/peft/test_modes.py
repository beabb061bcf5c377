"""What is in train mode."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vispeft.peft import Adapter, LoRA, Plan, inject, train_mode

Build = Callable[[], nn.Module]


class FunctionalAttention(nn.Module):
    """Passes its rate to a function, as many libraries do."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.attention_dropout = rate
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.dropout(x, self.attention_dropout, self.training))


class Detector(nn.Module):
    """A part that gives losses in train mode, beside a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.body(x))
        return y.square().sum() if self.training else y


def training(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def test_train_mode__of_frozen_parts_containers_follow_and_the_rest_is_in_eval_mode(build: Build) -> None:
    model = build()
    inject(model, Plan({"blocks.0.attn.proj": Adapter(width=2), "self_attn.in_proj_weight": LoRA(2)}, ["head"]))
    train_mode(model)
    assert {"", "head", "blocks", "blocks.0", "blocks.1.mlp", "blocks.0.attn.proj.adapter.0"} <= training(model)
    assert "self_attn.parametrizations.in_proj_weight.0.lora" in training(model)
    resting = {name for name, _ in model.named_modules()} - training(model)
    assert {"conv", "bn", "blocks.0.attn.drop", "blocks.0.attn", "blocks.1.norm1", "self_attn"} <= resting


def test_train_mode__a_part_trained_in_full_trains_with_its_dropout(build: Build) -> None:
    model = build()
    inject(model, Plan.last_blocks(1))
    train_mode(model)
    assert {"blocks.1", "blocks.1.attn", "blocks.1.attn.drop", "blocks.1.mlp.act"} <= training(model)
    assert not model.blocks[0].attn.drop.training


def test_train_mode__a_thawed_norm_trains_and_its_neighbours_rest(build: Build) -> None:
    model = build()
    inject(model, Plan(train=["bn", "blocks.0.norm1.bias"]))
    train_mode(model, update_statistics=True)
    assert {"", "bn", "blocks.0.norm1"} <= training(model)
    assert not training(model) & {"conv", "blocks.0.norm2", "blocks.1.norm1", "head"}


def test_train_mode__full_fine_tuning_is_ordinary_training(build: Build) -> None:
    model = build()
    inject(model, Plan.full())
    train_mode(model, update_statistics=True)
    assert all(module.training for module in model.modules())
    train_mode(model)
    assert {name for name, module in model.named_modules() if not module.training} == {"bn"}


def test_train_mode__changes_no_frozen_tensor_and_drops_nothing_in_frozen_parts(build: Build, images: Tensor) -> None:
    model = build()
    model.norm = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    model.noise = nn.RReLU()
    model.depth = torchvision.ops.StochasticDepth(0.5, "row")
    forward = model.eval().forward
    model.forward = lambda images: model.depth(model.noise(model.norm(forward(images))))
    inject(model, Plan({"blocks.*.mlp.fc1": LoRA(2)}))
    with torch.no_grad():
        wanted = model(images)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        train_mode(model)
        torch.testing.assert_close(model(images), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_train_mode__rests_a_module_that_passes_a_rate_of_its_own_to_a_function(rate: float) -> None:
    model = nn.Sequential(FunctionalAttention(rate), nn.Linear(8, 4))
    inject(model, Plan({"0.proj": LoRA(2)}, ["1"]))
    train_mode(model)
    assert model[0].training == (rate == 0)
    assert model[0].proj.lora.training


def test_train_mode__a_checkpointed_module_trains_although_it_has_a_rate() -> None:
    model = nn.Sequential(FunctionalAttention(0.5), nn.Linear(8, 4))
    model[0].gradient_checkpointing = True
    inject(model, Plan({"0.proj": LoRA(2)}, ["1"]))
    train_mode(model)
    assert model[0].training


def test_train_mode__a_frozen_part_gives_its_losses() -> None:
    model = nn.Sequential(Detector())
    inject(model, Plan({"0.body": LoRA(2)}))
    train_mode(model)
    x = torch.randn(2, 8)
    loss = model(x)
    assert loss.ndim == 0
    assert torch.equal(model(x), loss)


def test_train_mode__a_detector_of_torchvision_gives_losses() -> None:
    torch.manual_seed(0)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=32, max_size=32
    )
    inject(model, Plan({"roi_heads.box_head.fc7": LoRA(2)}))
    train_mode(model)
    masks = torch.zeros(1, 32, 32, dtype=torch.uint8)
    masks[0, 4:20, 4:20] = 1
    target = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1]), "masks": masks}
    losses = model([torch.rand(3, 32, 32)], [target])
    assert {"loss_mask", "loss_classifier", "loss_objectness"} <= losses.keys()
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_train_mode__a_model_of_transformers_recomputes_its_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    model = transformers.ViTModel(config)
    inject(model, Plan({"layers.*.attention.q_proj": LoRA(2)}))
    model.gradient_checkpointing_enable()
    train_mode(model)
    calls: list[int] = []
    model.layers[1].attention.q_proj.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 16, 16)).last_hidden_state.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("update", [False, True])
def test_train_mode__statistics_change_only_where_asked(build: Build, images: Tensor, update: bool) -> None:
    model = build()
    inject(model, Plan.full())
    train_mode(model, update_statistics=update)
    before = model.bn.running_mean.clone()
    model(images)
    assert model.bn.training is update
    assert torch.equal(model.bn.running_mean, before) is not update
    assert model.blocks[0].attn.drop.training
