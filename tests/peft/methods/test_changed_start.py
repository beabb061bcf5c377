"""LoRA from starts of the pretrained weight: values of the start, precision, files and refusals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import LoRA, Plan, count, inject, load_adapter, load_peft, merge, save_adapter, save_peft
from vispeft.peft.inject import attached


def linear(outputs: int = 9, inputs: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs))


def start_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    delta = attached(model)[0].delta
    return delta.get_buffer("a_start"), delta.get_buffer("b_start")


@pytest.mark.parametrize(("start", "chosen"), [("pissa", slice(2)), ("milora", slice(4, None))])
@pytest.mark.parametrize("alpha", [None, 6.0, -3.0])
def test_start__is_the_part_of_the_chosen_singular_values(start: str, chosen: slice, alpha: float | None) -> None:
    model = linear().double()
    left, values, right = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    method = LoRA(2, alpha, start=start)
    inject(model, Plan({"0": method}))
    a, b = start_of(model)
    wanted = left[:, chosen] @ torch.diag(values[chosen]) @ right[chosen]
    torch.testing.assert_close(method.scale * b @ a, wanted)
    # both factors have the square roots of the singular values, so that neither learns faster
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_start__of_olora_is_the_first_of_q_and_r() -> None:
    model = linear().double()
    q, r = torch.linalg.qr(model[0].weight.detach())
    inject(model, Plan({"0": LoRA(2, 8, start="orthogonal")}))
    a, b = start_of(model)
    assert torch.equal(a, r[:2])
    assert torch.equal(b, q[:, :2])


def test_start__of_a_convolution_is_over_flattened_kernels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 2)).double()
    wanted = torch.linalg.svdvals(model[0].weight.detach().flatten(1))[:2]
    inject(model, Plan({"0": LoRA(2, start="pissa")}))
    a, b = start_of(model)
    assert a.shape == (2, 3, 2, 2)
    assert b.shape == (5, 2, 1, 1)
    torch.testing.assert_close(torch.linalg.svdvals(b.flatten(1) @ a.flatten(1))[:2], wanted)


def test_start__trains_as_the_papers_do_with_a_residual_base() -> None:
    """Gradients and outputs of `W_res x + s B A x`, with W_res = W - s B0 A0, as the authors compute them."""
    model, x = linear().double(), torch.randn(4, 6, dtype=torch.float64)
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach()
    inject(model, Plan({"0": LoRA(2, 6, start="pissa")}))
    a, b = (factor.clone().requires_grad_() for factor in start_of(model))
    residual = weight - 3 * (b @ a).detach()
    delta = attached(model)[0].delta
    mine, theirs = (torch.optim.SGD(params, lr=0.01) for params in ([delta.a, delta.b], [a, b]))
    for _ in range(3):
        outputs = model(x), x @ (residual + 3 * b @ a).T + bias
        torch.testing.assert_close(*outputs)
        for optimizer, output in zip((mine, theirs), outputs, strict=True):
            optimizer.zero_grad()
            (output - 1).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(delta.a, a)
    torch.testing.assert_close(delta.b, b)
    assert (delta.a - delta.get_buffer("a_start")).abs().max() > 1e-3


@pytest.mark.parametrize("start", ["pissa", "milora", "orthogonal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_start__is_the_identity_to_the_bit_in_half_precision(start: str, dtype: torch.dtype) -> None:
    model, x = linear(), torch.randn(4, 6)
    base, x = linear().to(dtype), x.to(dtype)
    before = base(x)
    inject(base, Plan({"0": LoRA(2, 4, start=start)}))
    assert torch.equal(base(x), before)
    with torch.autocast("cpu", dtype=dtype):
        expected = model(x.float())
        inject(model, Plan({"0": LoRA(2, 4, start=start)}))
        assert torch.equal(model(x.float()), expected)
    weight = base[0].weight.detach().clone()
    merge(base)
    assert torch.equal(base[0].weight, weight)


def test_start__is_in_the_file_and_holds_against_another_decomposition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gives the same outputs where the singular vectors come out with other signs."""
    model, fresh, x = linear(), linear(), torch.randn(4, 6)
    inject(model, Plan({"0": LoRA(2, start="pissa")}))
    assert count(model).deltas == {"lora": 2 * (6 + 9)}
    with torch.no_grad():
        attached(model)[0].delta.b.add_(0.1)
    save_adapter(model, tmp_path / "lora.safetensors")
    assert sorted(load_file(tmp_path / "lora.safetensors")) == [
        f"0.lora.{name}" for name in ("a", "a_start", "b", "b_start")
    ]
    decompose = torch.linalg.svd

    def turned(weight: Tensor, **options: bool) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = decompose(weight, **options)
        return -left, values, -right

    monkeypatch.setattr(torch.linalg, "svd", turned)
    load_adapter(fresh, tmp_path / "lora.safetensors")
    assert torch.equal(fresh(x), model(x))


def test_start__refuses_ranks_and_weights_without_enough_singular_values() -> None:
    with pytest.raises(PlanError, match="`rank` must be at most 6, the smaller side of this site, for `start: pissa`"):
        inject(linear(), Plan({"0": LoRA(7, start="pissa")}))
    flat = linear()
    with torch.no_grad():
        flat[0].weight[:, 3:] = 0
    with pytest.raises(PlanError, match=r"only 3 of the 6 here are\. Use `start: orthogonal` or `start: zero`"):
        inject(flat, Plan({"0": LoRA(1, start="milora")}))
    with pytest.raises(PlanError, match="`start` must be one of zero, pissa, milora, orthogonal, but is 'svd'"):
        LoRA(1, start="svd")


@pytest.mark.parametrize("start", ["pissa", "milora", "orthogonal"])
def test_start__is_written_for_the_peft_library_as_plain_lora_of_twice_the_rank(start: str, tmp_path: Path) -> None:
    model = nn.Sequential(*linear(), *linear(4, 9))
    inject(model, Plan({"0": LoRA(2, alpha=3, start=start), "1.weight": LoRA(2, start=start, scaling="sqrt_rank")}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    save_peft(model, tmp_path)
    other = nn.Sequential(*linear(), *linear(4, 9))
    load_peft(other, tmp_path)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(other(x), model(x))
    assert {item.delta.a.shape[0] for item in attached(other)} == {4}


def test_scaling__divides_by_the_root_of_the_rank() -> None:
    assert LoRA(16, 8, scaling="sqrt_rank").scale == 2.0
    assert LoRA(16, 8).scale == 0.5
    assert (LoRA(16).scale, LoRA(16, scaling="sqrt_rank").scale) == (1.0, 4.0)
    with pytest.raises(PlanError, match="`scaling` must be one of rank, sqrt_rank, but is 'root'"):
        LoRA(2, scaling="root")
