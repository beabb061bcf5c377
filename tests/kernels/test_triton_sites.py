"""Injected models run by Triton's kernels, natively on a GPU and in the interpreter elsewhere.

The expected results are those of the plain formulas on the same model.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from vispeft_kernels import deformable_attention, lora_linear

from vispeft.peft import Adapter, DoRA, LoRA, Plan, check, inject, merge, train_mode
from vispeft.peft.inject import attached
from vispeft.peft.methods import fused_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 2e-5  # of the largest entry of a tensor
LINEAR = {"qkv": LoRA(3, parts="qv"), "fc1": LoRA(2, alpha=4.0, dropout=0.0), "fc2": DoRA(2)}
PLAN = Plan({**LINEAR, "proj": Adapter(width=5, count=2)}, ["head"])


class Block(nn.Module):
    """Linear maps, a norm and deformable attention. x: [B, 20, 12], the pixels of a 4 x 5 map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.fc1, self.act, self.fc2 = nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12, bias=False)
        self.head = nn.Linear(12, 3)
        self.use_checkpoints = False

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.attend, x, use_reentrant=False) if self.use_checkpoints else self.attend(x)
        return self.head(x + self.fc2(self.act(self.fc1(self.norm(x)))))

    def attend(self, x: Tensor) -> Tensor:
        locations, weights, value = self.qkv(self.norm(x)).chunk(3, -1)
        batch, pixels, _ = x.shape
        locations = locations.unflatten(-1, (2, 1, 3, 2)).sigmoid()  # [B, Q, heads, levels, points, 2]
        weights = weights[..., :6].unflatten(-1, (2, 1, 3)).softmax(-1)
        read = deformable_attention(value.view(batch, pixels, 2, 6), [(4, 5)], locations, weights)
        return x + self.proj(read)


def build(plan: Plan = PLAN) -> Block:
    """An injected block none of whose deltas is zero."""
    torch.manual_seed(0)
    model = Block().to(DEVICE)
    inject(model, plan)
    train_mode(model)
    for item in attached(model):
        for parameter in item.delta.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 20, 12, generator=torch.Generator().manual_seed(5)).to(DEVICE)


@contextmanager
def kernels(mode: str) -> Iterator[None]:
    before = os.environ.get("VISPEFT_KERNELS")
    os.environ["VISPEFT_KERNELS"] = mode
    try:
        yield
    finally:
        os.environ.pop("VISPEFT_KERNELS")
        if before is not None:
            os.environ["VISPEFT_KERNELS"] = before


def step(model: nn.Module, mode: str, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """The output, and the gradients of the input and of all that is trained."""
    x = images().requires_grad_()
    with kernels(mode):
        out = model(x) if call is None else call(x)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [x, *trained])]


def errors(ours: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """The largest error of each tensor, of its largest entry."""
    return [
        float((one.double() - two.double()).abs().max() / two.double().abs().max().clamp(min=1e-30))
        for one, two in zip(ours, wanted, strict=True)
    ]


def assert_near(ours: list[Tensor], wanted: list[Tensor]) -> None:
    found = errors(ours, wanted)
    assert max(found) < TOLERANCE, found


def test_inject__has_the_same_results_by_triton_s_kernels() -> None:
    model = build()
    names = list(model.state_dict())
    assert_near(step(model, "triton"), step(model, "reference"))
    assert list(model.state_dict()) == names


def test_inject__runs_the_map_in_the_same_kernel_unless_there_is_another_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused: list[tuple[int, ...]] = []

    def spy(x: Tensor, weight: Tensor, *args: object, **options: object) -> Tensor:
        fused.append(tuple(weight.shape))
        return lora_linear(x, weight, *args, **options)

    monkeypatch.setattr(fused_linear, "lora_linear", spy)
    model = build()
    wanted = step(model, "reference")
    assert not fused
    assert_near(step(model, "triton"), wanted)
    assert fused == [(36, 12), (24, 12)]
    batches: list[int] = []
    model.fc1.register_forward_hook(lambda module, args, output: batches.append(args[0].shape[0]))
    assert_near(step(model, "triton"), wanted)
    assert (fused[2:], batches) == ([(36, 12)], [2])
    check(model, images())


def test_inject__has_the_same_results_under_autocast() -> None:
    model = build()

    def call(x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            out: Tensor = model(x)
        return out

    plain, ours = step(model, "reference", call), step(model, "triton", call)
    truth = step(model.double(), "reference", lambda x: model(x.double()))
    assert ours[0].dtype == torch.bfloat16
    pairs = list(zip(errors(ours, truth), errors(plain, truth), strict=True))
    assert all(one < 1.5 * two + 1e-2 for one, two in pairs), pairs


def test_inject__compiles_whole_forward_and_backward() -> None:
    model = build()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_near(step(model, "triton", compiled), step(model, "reference"))


def test_inject__exports() -> None:
    model = build(Plan({**LINEAR, "proj": Adapter(width=5)}, ["head"])).eval()
    with kernels("triton"), torch.no_grad():
        program = torch.export.export(model, (images(),))
        names = {str(node.target) for node in program.graph.nodes}
        assert {"vispeft.lora.default", "vispeft.bottleneck.default"} <= names
        ours = program.module()(images())
    with kernels("reference"), torch.no_grad():
        assert_near([ours], [model(images())])


def test_inject__has_the_same_gradients_under_checkpointing() -> None:
    model = build()
    wanted = step(model, "reference")
    model.use_checkpoints = True
    assert_near(step(model, "triton"), wanted)


def test_deepcopy__is_independent_and_the_same() -> None:
    model = build()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.qkv.lora.a.zero_()
    assert_near(step(twin, "triton"), step(build(), "reference"))


def test_merge__gives_what_the_kernels_gave() -> None:
    model = build(Plan(LINEAR, ["head"])).eval()
    with kernels("triton"), torch.no_grad():
        before = model(images())
        merge(model)
        assert_near([model(images())], [before])


def test_distributed_data_parallel__has_the_gradients_of_the_bare_model(tmp_path: Path) -> None:
    model = build()
    wanted = step(model, "reference")[2:]
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with kernels("triton"):
            DistributedDataParallel(model)(images()).square().sum().backward()
    finally:
        dist.destroy_process_group()
    assert_near([p.grad for p in model.parameters() if p.requires_grad], wanted)


def test_training__has_the_loss_curve_of_the_references() -> None:
    def losses(mode: str) -> list[float]:
        model, found = build(Plan({**LINEAR, "proj": Adapter(width=5)}, ["head"])), []
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        x = images(1)
        target = x.mean(1, keepdim=True)[..., :3].expand(-1, 20, -1)
        with kernels(mode):
            for _ in range(8):
                loss = F.mse_loss(model(x), target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        return found

    ours, wanted = losses("triton"), losses("reference")
    assert wanted[-1] < 0.7 * wanted[0]
    assert ours == pytest.approx(wanted, rel=1e-3)
