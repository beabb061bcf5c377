"""The spread of every freshly built parameter, as the published Mask DINO code starts it.

Each kind is written here as the rule that the published code applies: Xavier for the transformer's matrices
(`nn.MultiheadAttention` packs q, k and v into one matrix [3 * dim, dim]), Kaiming with slope 1 for the mask features'
convolutions, torch's defaults elsewhere. The class bias is ours: focal loss starts from a probability of 0.01.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from vispeft.models import MaskDINO, build_model

DIM = 64


def fans(weight: Tensor) -> tuple[int, int]:
    """Inputs and outputs of a matrix or a convolution, each times the kernel's area."""
    area = weight[0, 0].numel()
    return weight.shape[1] * area, weight.shape[0] * area


def xavier(weight: Tensor) -> float:
    return math.sqrt(6 / sum(fans(weight)))


def packed_xavier(weight: Tensor) -> float:
    return math.sqrt(6 / (DIM + 3 * DIM))


def kaiming(weight: Tensor) -> float:
    return math.sqrt(3 / fans(weight)[0])


def default(weight: Tensor) -> float:
    return math.sqrt(1 / fans(weight)[0])


# parameter names -> bound of the uniform distribution, from the weight
UNIFORM = {
    r"decoder\.layers\.\d+\.self_attn\.[qkv]_proj\.weight": packed_xavier,
    r"decoder\.layers\.\d+\.self_attn\.out_proj\.weight": xavier,
    r".*\.(value_proj|output_proj)\.weight": xavier,
    r".*\.layers\.\d+\.linear[12]\.weight": xavier,
    r"decoder\.ref_point_head\.layers\.\d\.weight": xavier,
    r"pixel_decoder\.input_proj\.\d\.0\.weight": xavier,
    r"pixel_decoder\.(lateral|output)_convs\.0\.0\.weight": kaiming,
    r"pixel_decoder\.mask_features\.weight": kaiming,
    r"decoder\.(enc_output|class_embed)\.weight": default,
    r"decoder\.mask_embed\.layers\.\d\.weight": default,
    r"decoder\.bbox_embed\.layers\.[01]\.weight": default,
}
# biases whose bound comes from the weight beside them
UNIFORM_BIASES = (
    r".*\.layers\.\d+\.linear[12]\.bias",
    r"decoder\.(ref_point_head|mask_embed)\.layers\.\d\.bias",
    r"decoder\.bbox_embed\.layers\.[01]\.bias",
    r"decoder\.enc_output\.bias",
)
CONSTANT = {
    r"decoder\.layers\.\d+\.self_attn\.\w+\.bias": 0.0,
    r".*\.(value_proj|output_proj|attention_weights)\.bias": 0.0,
    r".*\.(sampling_offsets|attention_weights)\.weight": 0.0,
    r"pixel_decoder\.(input_proj\.\d\.0|mask_features)\.bias": 0.0,
    r"decoder\.bbox_embed\.layers\.2\.(weight|bias)": 0.0,
    r"decoder\.class_embed\.bias": -math.log(99),
    r".*(norm\d?|_convs\.0\.1|input_proj\.\d\.1)\.weight": 1.0,
    r".*(norm\d?|_convs\.0\.1|input_proj\.\d\.1)\.bias": 0.0,
}
NORMAL = (r"pixel_decoder\.level_embed", r"decoder\.label_embed\.weight")
OFFSETS = r".*\.sampling_offsets\.bias"


@pytest.fixture(scope="module")
def model() -> MaskDINO:
    torch.manual_seed(0)
    return build_model(
        "mask_dino", backbone="resnet18", num_classes=50, dim=DIM, ffn_dim=160, mask_dim=48, num_heads=4, num_queries=8
    )


def fresh(model: MaskDINO) -> dict[str, Tensor]:
    """Every parameter behind the backbone."""
    return {name: p.detach() for name, p in model.named_parameters() if not name.startswith("backbone.")}


def test_fresh_parameters__each_has_one_rule(model: MaskDINO) -> None:
    rules = [*UNIFORM, *UNIFORM_BIASES, *CONSTANT, *NORMAL, OFFSETS]
    for name in fresh(model):
        assert len([rule for rule in rules if re.fullmatch(rule, name)]) == 1, name


@pytest.mark.parametrize("rule", [*UNIFORM, *UNIFORM_BIASES])
def test_fresh_parameters__spread_uniformly_up_to_the_published_bound(model: MaskDINO, rule: str) -> None:
    parameters = fresh(model)
    pooled: list[Tensor] = []
    for name, value in parameters.items():
        if re.fullmatch(rule, name):
            weight = parameters[name.removesuffix("bias") + "weight"] if name.endswith("bias") else value
            bound = default(weight) if name.endswith("bias") else UNIFORM[rule](weight)
            pooled.append(value.flatten() / bound)
    values = torch.cat(pooled)
    assert values.abs().max() <= 1 + 1e-6
    assert values.abs().max() > 0.95
    # the standard error of the ratio is 0.45 / sqrt(n) for a uniform distribution
    assert float(values.std()) * math.sqrt(3) == pytest.approx(1, abs=4 * 0.45 / math.sqrt(len(values)))


@pytest.mark.parametrize(("rule", "value"), CONSTANT.items())
def test_fresh_parameters__are_constant_where_published(model: MaskDINO, rule: str, value: float) -> None:
    found = [p for name, p in fresh(model).items() if re.fullmatch(rule, name)]
    assert found
    for parameter in found:
        torch.testing.assert_close(parameter, torch.full_like(parameter, value), atol=2e-4, rtol=0)


def test_fresh_parameters__embeddings_are_standard_normal(model: MaskDINO) -> None:
    values = torch.cat([p.flatten() for name, p in fresh(model).items() if any(re.fullmatch(r, name) for r in NORMAL)])
    assert float(values.std()) == pytest.approx(1, abs=0.05)
    assert float(values.mean()) == pytest.approx(0, abs=0.07)


def test_fresh_sampling_offsets__point_around_and_further_with_each_point(model: MaskDINO) -> None:
    for name, bias in fresh(model).items():
        if re.fullmatch(OFFSETS, name):
            offsets = bias.view(4, -1, 4, 2)  # [heads, levels, points, xy]
            directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
            wanted = directions[:, None, None] * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
            torch.testing.assert_close(offsets, wanted.expand_as(offsets), atol=1e-6, rtol=0)


def test_fresh_layers__differ_from_each_other(model: MaskDINO) -> None:
    first, second = (model.decoder.get_parameter(f"layers.{index}.self_attn.q_proj.weight") for index in (0, 1))
    assert not torch.equal(first, second)
