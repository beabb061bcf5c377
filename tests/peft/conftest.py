"""A small network with every kind of site, and one case per method and kind of site."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.peft import (
    BOFT,
    IA3,
    OFT,
    VPT,
    AdaLoRA,
    Adapter,
    Compacter,
    ConvLoRA,
    Convpass,
    DoRA,
    FacT,
    FourierFT,
    Ladder,
    LoHa,
    LoKr,
    LoRA,
    LoRand,
    Method,
    Mona,
    Plan,
    Prefix,
    Rein,
    RepAdapter,
    ScaleShift,
    Sparse,
    VeRA,
    inject,
    load_adapter,
    save_adapter,
)


class Attention(nn.Module):
    """Self-attention with a fused projection. x: [B, N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.drop = nn.Dropout(0.5)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.drop(self.proj(F.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(8), Attention(), nn.LayerNorm(8), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Net(nn.Module):
    """Convolutions, two blocks, an nn.MultiheadAttention, a map that is read without being called, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.self_attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.reader = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.grouped(self.act(self.bn(self.conv(images)))).flatten(2).transpose(1, 2)  # [B, N, 8]
        for block in self.blocks:
            x = block(x)
        x = x + self.self_attn(x, x, x, need_weights=False)[0]
        return self.head(F.linear(x, self.reader.weight).mean(1))


@dataclass(frozen=True)
class Case:
    """One plan entry.

    merges: True for a delta that is linear in the weights
    has_formula: True for a method that test_formulas.py writes out; others have a test file of their own
    """

    pattern: str
    methods: Method | tuple[Method, ...]
    merges: bool = True
    has_formula: bool = True

    @property
    def is_identity_at_start(self) -> bool:
        methods = self.methods if isinstance(self.methods, tuple) else (self.methods,)
        return all(method.is_identity_at_start for method in methods)

    @property
    def plan(self) -> Plan:
        return Plan({self.pattern: self.methods}, ["head.**"])


CASES = {
    "lora linear": Case("blocks.*.mlp.fc1", LoRA(rank=2, alpha=4)),
    "lora fused whole": Case("blocks.*.attn.qkv", LoRA(rank=2)),
    "lora fused q v": Case("blocks.*.attn.qkv", LoRA(rank=2, alpha=6, parts="qv")),
    "lora fused k": Case("blocks.*.attn.qkv", LoRA(rank=2, parts="k")),
    "lora conv": Case("conv", LoRA(rank=2, alpha=4)),
    "lora mha q v": Case("self_attn.in_proj_weight", LoRA(rank=2, alpha=4, parts="qv")),
    "lora mha out": Case("self_attn.out_proj.weight", LoRA(rank=2)),
    "lora read weight": Case("reader.weight", LoRA(rank=2)),
    "lora grouped conv": Case("grouped", LoRA(rank=2, alpha=4)),
    "lora grouped conv weight": Case("grouped.weight", LoRA(rank=2)),
    "lora rank stabilised": Case("blocks.*.mlp.fc1 | conv", LoRA(rank=4, alpha=3, scaling="sqrt_rank")),
    "lora pissa": Case("blocks.*.mlp.fc1 | conv | grouped", LoRA(rank=2, alpha=4, start="pissa")),
    "lora pissa q v": Case("blocks.*.attn.qkv", LoRA(rank=2, parts="qv", start="pissa")),
    "lora milora": Case("blocks.*.mlp.fc2 | self_attn.out_proj.weight", LoRA(rank=3, alpha=-2, start="milora")),
    "lora orthogonal": Case("blocks.*.attn.proj | conv", LoRA(rank=2, start="orthogonal")),
    "lora orthogonal parameters": Case(
        "self_attn.in_proj_weight", LoRA(rank=2, parts="qv", scaling="sqrt_rank", start="orthogonal")
    ),
    "dora widening": Case("blocks.*.mlp.fc1", DoRA(rank=2, alpha=4)),
    "dora narrowing": Case("blocks.*.mlp.fc2", DoRA(rank=2)),
    "dora fused whole": Case("blocks.*.attn.qkv", DoRA(rank=2)),
    "dora fused q v": Case("blocks.*.attn.qkv", DoRA(rank=2, alpha=6, parts="qv")),
    "dora conv": Case("conv", DoRA(rank=2, alpha=4)),
    "dora mha q v": Case("self_attn.in_proj_weight", DoRA(rank=2, parts="qv")),
    "dora read weight": Case("reader.weight", DoRA(rank=2)),
    "dora grouped conv": Case("grouped", DoRA(rank=2)),
    "dora grouped conv weight": Case("grouped.weight", DoRA(rank=2)),
    "dora rank stabilised": Case("blocks.*.mlp.fc2", DoRA(rank=4, alpha=3, scaling="sqrt_rank")),
    "adapter": Case("blocks.*.attn.proj", Adapter(width=3), merges=False),
    "adapters 3": Case("blocks.*.attn.proj | blocks.*.mlp.fc2", Adapter(reduction=4, count=3), merges=False),
    "adapter last": Case("blocks.*.attn.proj", Adapter(width=3, count=2, chain="last"), merges=False),
    "adapter parallel": Case(
        "blocks.*.mlp", Adapter(width=3, parallel=True, activation="relu", scale=0.1), merges=False
    ),
    "adapter conv": Case("conv", Adapter(width=3, activation="silu"), merges=False),
    "adapter block": Case("blocks.1", Adapter(width=3), merges=False),
    "adapter mha": Case("self_attn", Adapter(width=3), merges=False),
    "ssf linear": Case("blocks.*.mlp.fc2", ScaleShift()),
    "ssf norm": Case("blocks.*.norm1", ScaleShift()),
    "ssf batch norm": Case("bn", ScaleShift()),
    "ssf conv": Case("conv", ScaleShift()),
    "ia3": Case("blocks.*.mlp.fc1", IA3()),
    "ia3 fused k v": Case("blocks.*.attn.qkv", IA3(parts="kv")),
    "ia3 input": Case("blocks.*.mlp.fc2 | conv | grouped", IA3(side="input"), has_formula=False),
    "vera": Case("blocks.*.attn.qkv | blocks.*.mlp.fc1", VeRA(rank=4)),
    "vera mixed sites": Case("blocks.*.attn.proj | self_attn.in_proj_weight | reader.weight", VeRA(rank=4, start=1.0)),
    "adalora linear and conv": Case("blocks.*.mlp.fc1 | conv", AdaLoRA(rank=2, alpha=4)),
    "adalora fused q v": Case("blocks.*.attn.qkv", AdaLoRA(rank=2, parts="qv")),
    "adalora parameters": Case("self_attn.in_proj_weight | reader.weight", AdaLoRA(rank=2)),
    "loha linear and conv": Case("blocks.*.mlp.fc1 | conv | grouped", LoHa(rank=2, alpha=4)),
    "loha parameters": Case("self_attn.in_proj_weight | grouped.weight", LoHa(rank=2)),
    "lokr linear and conv": Case("blocks.*.attn.qkv | conv", LoKr(rank=2)),
    "lokr parameters": Case("self_attn.in_proj_weight | grouped.weight", LoKr(rank=2, factor=2)),
    "fourierft linear and conv": Case("blocks.*.mlp.fc1 | conv", FourierFT(frequencies=12)),
    "fourierft parameters": Case("self_attn.in_proj_weight | reader.weight", FourierFT(frequencies=20)),
    "oft linear": Case("blocks.*.mlp.fc2", OFT(block=4)),
    "oft conv": Case("conv", OFT(block=9)),
    "oft parameters": Case("self_attn.in_proj_weight | grouped.weight", OFT(block=2)),
    "boft linear": Case("blocks.*.mlp.fc1 | blocks.*.mlp.fc2", BOFT(block=2, factors=3)),
    "boft conv and parameter": Case("grouped | self_attn.in_proj_weight", BOFT(block=2, factors=1)),
    "boft parameter": Case("self_attn.in_proj_weight", BOFT(block=4)),
    "fact tt": Case("blocks.*.attn.qkv | blocks.*.mlp.fc1 | blocks.*.mlp.fc2", FacT(rank=2, scale=3.0)),
    "fact tk": Case("blocks.*.mlp.fc2 | self_attn.in_proj_weight | reader.weight", FacT(rank=3, scale=2.0, form="tk")),
    "conv lora": Case("blocks.*.attn.qkv", ConvLoRA(rank=3, experts=3), merges=False, has_formula=False),
    "oft among others": Case("blocks.*.mlp.fc2", (ScaleShift(), OFT(block=2), LoRA(rank=1))),
    "sparse linear and conv": Case("blocks.*.mlp.fc1 | conv | grouped", Sparse(0.6, "magnitude")),
    "sparse parameters": Case("self_attn.in_proj_weight | grouped.weight", Sparse(0.7, "magnitude")),
    "sparse and products": Case("blocks.*.mlp.fc1 | conv", Sparse(0.5, "magnitude", rank=2)),
    "ladder": Case("blocks.*", Ladder(width=3), merges=False, has_formula=False),
    "ladder to all outputs": Case("blocks.*", Ladder(width=3, outputs="all"), merges=False, has_formula=False),
    "vpt": Case("blocks.*", VPT(tokens=3), merges=False, has_formula=False),
    "vpt shallow": Case("blocks.*", VPT(tokens=3, deep=False), merges=False, has_formula=False),
    "convpass": Case("blocks.*.mlp | self_attn", Convpass(width=3), merges=False),
    "convpass conv": Case("grouped", Convpass(width=3, scale=0.5, activation="quick_gelu"), merges=False),
    "mona": Case("blocks.*.attn | blocks.*.mlp | self_attn", Mona(width=3), merges=False),
    "mona conv": Case("conv", Mona(width=2), merges=False),
    "adapter with channel scales": Case(
        "blocks.*.attn.proj | conv", Adapter(width=3, count=2, channel_scale=True, start="normal"), merges=False
    ),
    "repadapter": Case("blocks.*.attn.qkv | blocks.*.mlp.fc1", RepAdapter(width=4, groups=2, scale=0.5)),
    "repadapter among others": Case(
        "blocks.*.mlp.fc2", (RepAdapter(width=3, groups=1), LoRA(rank=2), ScaleShift()), has_formula=False
    ),
    "lorand": Case("blocks.*.attn.proj | conv", LoRand(width=4, rank=2, branches=3), merges=False),
    "compacter": Case("blocks.*.attn | blocks.*.mlp", Compacter(width=4, n=2, rank=2), merges=False),
    "rein": Case("blocks.*", Rein(tokens=5, rank=2), merges=False),
    "rein conv": Case("conv", Rein(tokens=4, rank=None, shared=False), merges=False),
    "prefix": Case("blocks.*.attn", Prefix(tokens=3), merges=False, has_formula=False),
    "three lora and ssf": Case("blocks.*.mlp.fc1", (LoRA(rank=2), ScaleShift(), LoRA(rank=1), LoRA(rank=1))),
    "dora among others": Case("blocks.*.mlp.fc2", (ScaleShift(), DoRA(rank=2), LoRA(rank=1))),
    "lora after adapter": Case("blocks.*.mlp.fc2", (Adapter(width=2), LoRA(rank=2)), merges=False),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def cases() -> list[Case]:
    return list(CASES.values())


@pytest.fixture(
    params=[case for case in CASES.values() if case.has_formula],
    ids=[name for name, case in CASES.items() if case.has_formula],
)
def formula_case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def build() -> Callable[[], Net]:
    """Gives the same network in eval mode at every call, with statistics in its BatchNorm."""

    def new() -> Net:
        torch.manual_seed(0)
        net = Net()
        nn.init.uniform_(net.bn.running_mean)
        nn.init.uniform_(net.bn.running_var, 0.5, 2)
        return net.eval()

    return new


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def shake() -> Callable[[nn.Module], None]:
    """Gives every trainable parameter some other value, as training would."""

    def change(model: nn.Module) -> None:
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))

    return change


@pytest.fixture
def train() -> Callable[[nn.Module, Tensor], None]:
    """Takes three optimizer steps."""

    def steps(model: nn.Module, images: Tensor) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(images) - 1).square().sum().backward()
            assert all(parameter.grad is not None for parameter in trained)
            optimizer.step()

    return steps


WEATHER = {
    "night": Plan({"blocks.*.attn.qkv": LoRA(2, parts="qv"), "blocks.*.mlp.fc1": LoRA(2)}, ["head.**"]),
    "rain": Plan(
        {"blocks.*.attn.qkv": LoRA(3, alpha=6, parts="qv"), "self_attn.in_proj_weight": LoRA(2)}, ["bn", "head.**"]
    ),
    "snow": Plan(
        {"blocks.*.mlp.fc1": [ScaleShift(), DoRA(2)], "blocks.*.attn.proj": Adapter(width=3), "conv": LoRA(2)}
    ),
}


@pytest.fixture
def write_adapter(build: Callable[[], Net], tmp_path: Path) -> Callable[[str, Plan], Path]:
    """Writes an adapter file with values that depend on its name."""

    def write(name: str, plan: Plan) -> Path:
        model = build()
        inject(model, plan)
        torch.manual_seed(sum(map(ord, name)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if "bn" in plan.train:
                model.bn.running_mean.add_(0.1)
        save_adapter(model, tmp_path / name, metadata={"weather": name})
        return tmp_path / name

    return write


@pytest.fixture
def weather_files(write_adapter: Callable[[str, Plan], Path]) -> dict[str, Path]:
    """The adapter files of `WEATHER`."""
    return {name: write_adapter(name, plan) for name, plan in WEATHER.items()}


@pytest.fixture
def weather_model(build: Callable[[], Net], weather_files: dict[str, Path]) -> Net:
    """The base with all three of these adapters, the last of them active."""
    model = build()
    for name, path in weather_files.items():
        load_adapter(model, path, name=name)
    return model


@pytest.fixture
def weather_outputs(
    build: Callable[[], Net], weather_files: dict[str, Path]
) -> Callable[[Tensor], dict[str | None, Tensor]]:
    """Gives the outputs of each adapter alone, loaded without a name, and of the base."""

    @torch.no_grad()
    def outputs(images: Tensor) -> dict[str | None, Tensor]:
        found: dict[str | None, Tensor] = {}
        for name in (*weather_files, None):
            model = build()
            if name is not None:
                load_adapter(model, weather_files[name])
            # by what is frozen, some processors choose kernels
            found[name] = model.requires_grad_(False)(images)
        return found

    return outputs
