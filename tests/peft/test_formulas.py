"""Outputs and gradients of every case against its method's formula, written out here in plain torch and float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vispeft.peft import (
    BOFT,
    IA3,
    OFT,
    AdaLoRA,
    Adapter,
    Compacter,
    Convpass,
    DoRA,
    FacT,
    FourierFT,
    LoHa,
    LoKr,
    LoRA,
    LoRand,
    Method,
    Mona,
    Plan,
    Rein,
    RepAdapter,
    ScaleShift,
    Sparse,
    VeRA,
    inject,
)
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]
Tensors = dict[str, Tensor]

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def rows(parts: str, total: int) -> Tensor:
    """Indices of the rows that the parts of a fused map own, in their order; all rows where no parts are named."""
    third = total // 3
    return torch.cat([torch.arange(third) + "qkv".index(part) * third for part in parts or "qkv"])


def low_rank(weight: Tensor, method: LoRA | AdaLoRA | DoRA, own: Tensors) -> Tensor:
    """`alpha / rank * B A` in the shape of the weight, zero on rows of other parts.

    Of AdaLoRA the product is `B diag(e) A`, of a changed start `B A - B0 A0`.
    """
    a = own["a"].flatten(1) * (own["e"][:, None] if isinstance(method, AdaLoRA) else 1)  # [parts * r, in]
    b = own["b"].flatten(1)  # [parts * out of a part, r]
    count = len(method.parts) or 1
    product = torch.cat([B @ A for B, A in zip(b.chunk(count), a.chunk(count), strict=True)])
    if "a_start" in own:
        halves = own["b_start"].flatten(1).chunk(count), own["a_start"].flatten(1).chunk(count)
        product = product - torch.cat([B @ A for B, A in zip(*halves, strict=True)])
    divisor = {"rank": method.rank, "sqrt_rank": method.rank**0.5}[method.scaling]
    scale = (method.rank if method.alpha is None else method.alpha) / divisor
    if not method.parts:
        return scale * product.view(weight.shape)
    index = rows(method.parts, len(weight))
    return torch.zeros_like(weight).flatten(1).index_copy(0, index, scale * product).view(weight.shape)


def cayley(values: Tensor, size: int) -> Tensor:
    """`(I + Q)(I - Q)^-1` of the skew-symmetric Q with this upper triangle."""
    identity = torch.eye(size, dtype=values.dtype)
    places = [(i, j) for i in range(size) for j in range(i + 1, size)]
    skew = torch.zeros_like(identity)
    for (i, j), value in zip(places, values, strict=True):
        unit = torch.zeros_like(identity)
        unit[i, j], unit[j, i] = 1, -1
        skew = skew + value * unit
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def rotation(method: OFT | BOFT, own: Tensors) -> Tensor:
    """R, the product of block-diagonal factors: of BOFT, those of level i are on halves of blocks 2^i halves apart."""
    size, half = method.block, method.block // 2
    num_factors = method.factors if isinstance(method, BOFT) else 1
    total = None
    for level, triangles in enumerate(own["rotations.q"].chunk(num_factors)):
        factor = torch.block_diag(*(cayley(values, size) for values in triangles))
        if level:
            pairs = [(u, u + 2**level) for u in range(2 * len(triangles)) if not u & 2**level]
            order = torch.tensor([unit * half + i for pair in pairs for unit in pair for i in range(half)])
            places = torch.eye(len(factor), dtype=factor.dtype)[order]
            factor = places.T @ factor @ places
        total = factor if total is None else factor @ total
    assert total is not None
    return total


def fact_update(method: FacT, own: Tensors, outputs: int, inputs: int) -> Tensor:
    """`V S U` [out, in], block by block, with S from the core in Tucker form."""
    u, v = own["update.shared.u"], own["update.shared.v"]
    rank, width = u.shape
    bands = []
    for row in range(outputs // width):
        blocks = []
        for column in range(inputs // width):
            if method.form == "tt":
                middle = own["update.s"][row * rank : (row + 1) * rank, column * rank : (column + 1) * rank]
            else:
                coefficients = own["update.p"][row * (inputs // width) + column]
                middle = sum(c * core for c, core in zip(coefficients, own["update.shared.core"], strict=True))
            blocks.append(v @ middle @ u)
        bands.append(torch.cat(blocks, 1))
    return torch.cat(bands)


def change(weight: Tensor, method: Method, own: Tensors) -> Tensor:
    """The update of a weight [out, ...]."""
    outputs, inputs = weight.flatten(1).shape
    match method:
        case LoRA() | AdaLoRA() | DoRA():
            return low_rank(weight, method, own)
        case VeRA():
            a, b = own["projections.a"][:, :inputs], own["projections.b"][:outputs]
            update = torch.diag(own["scale_b"]) @ b @ torch.diag(own["scale_d"]) @ a
        case LoHa():
            scale = 1.0 if method.alpha is None else method.alpha / method.rank
            update = scale * (own["update.b1"] @ own["update.a1"]) * (own["update.b2"] @ own["update.a2"])
        case LoKr():
            small, large = own["update.c"], own["update.b"] @ own["update.a"]
            update = torch.cat([torch.cat([entry * large for entry in row], 1) for row in small])
        case FourierFT():
            place = own[f"update.places.places_{outputs}x{inputs}"]
            row, column = place // inputs, place % inputs
            u, v = torch.arange(outputs).double()[:, None, None], torch.arange(inputs).double()[:, None]
            waves = torch.cos(2 * torch.pi * (u * row / outputs + v * column / inputs))  # [out, in, n]
            update = method.scale * (waves.to(weight.dtype) @ own["update.spectrum"]) / (outputs * inputs)
        case Sparse() if "update.a" in own:
            update = own["update.b"] @ own["update.a"]
        case Sparse():
            place = own["update.indices"].long()
            update = torch.zeros_like(weight).flatten().index_put((place,), own["update.values"])
        case FacT():
            update = method.scale * fact_update(method, own, outputs, inputs)
        case OFT() | BOFT():
            update = weight.flatten(1) @ (rotation(method, own).T - torch.eye(inputs, dtype=weight.dtype))
        case _:
            raise AssertionError(method)
    return update.view(weight.shape)


def gain(weight: Tensor, method: DoRA, own: Tensors) -> Tensor:
    """`(||W|| + m) / ||W + alpha / rank * B A||` by row with the divisor a constant; one on rows of other parts."""
    divisor = (weight + change(weight, method, own)).flatten(1).norm(dim=1).detach()
    index = rows(method.parts, len(weight)) if method.parts else torch.arange(len(weight))
    grown = weight.flatten(1).norm(dim=1)[index] + own["m"]
    return torch.ones_like(divisor).index_copy(0, index, grown / divisor[index])


def along(values: Tensor, y: Tensor, module: nn.Module) -> Tensor:
    """Values by feature, shaped to multiply y: features come second in maps and last elsewhere."""
    return values[:, None, None] if isinstance(module, nn.Conv2d | nn.BatchNorm2d) else values


def applied(weight: Tensor, x: Tensor, module: nn.Module) -> Tensor:
    """A weight's map of x, without a bias, in the geometry of the module."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, weight)


def bottleneck(y: Tensor, method: Adapter, own: Tensors, number: int) -> Tensor:
    """`scale * up(act(down(y)))` of one adapter. y: [..., C]."""
    down_w, down_b, up_w, up_b = (own[f"{number}.{name}"] for name in ("down_w", "down_b", "up_w", "up_b"))
    result = ACTIVATIONS[method.activation](y @ down_w.T + down_b) @ up_w.T + up_b
    return method.scale * (result * own[f"{number}.channel_scale"] if method.channel_scale else result)


def adapted(x: Tensor, y: Tensor, method: Adapter, own: Tensors) -> Tensor:
    """y with its adapters. x: [..., in]; y: [..., C]."""
    result = y
    for number in range(method.count):
        read = x if method.parallel else result
        result = (y if method.chain == "last" else result) + bottleneck(read, method, own, number)
    return result


def bypass(x: Tensor, method: Convpass, own: Tensors) -> Tensor:
    """`scale * up(act(conv(act(down(x)))))` of the network's square maps. x: [B, C, H, W] or tokens [B, N, C]."""
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        return bypass(x.mT.unflatten(2, (side, side)), method, own).flatten(2).mT

    def act(z: Tensor) -> Tensor:
        return z / (1 + torch.exp(-1.702 * z)) if method.activation == "quick_gelu" else ACTIVATIONS["gelu"](z)

    hidden = act(F.conv2d(x, own["down_w"][:, :, None, None], own["down_b"]))
    hidden = act(F.conv2d(hidden, own["conv_w"], own["conv_b"], padding=1))
    return method.scale * F.conv2d(hidden, own["up_w"][:, :, None, None], own["up_b"])


def cognitive(y: Tensor, own: Tensors) -> Tensor:
    """Mona's addition to the network's square maps. y: [B, C, H, W] or tokens [B, N, C]."""
    if y.ndim == 3:
        side = math.isqrt(y.shape[1])
        return cognitive(y.mT.unflatten(2, (side, side)), own).flatten(2).mT

    def pointwise(z: Tensor, name: str) -> Tensor:
        return F.conv2d(z, own[f"{name}_w"][:, :, None, None], own[f"{name}_b"])

    centred = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    names = ("norm_w", "norm_b", "norm_scale", "input_scale")
    norm_w, norm_b, s1, s2 = (own[name][:, None, None] for name in names)
    down = pointwise(s1 * (norm_w * centred + norm_b) + s2 * y, "down")
    filtered = [
        F.conv2d(down, own[f"conv{k}_w"], own[f"conv{k}_b"], padding=k // 2, groups=len(own["down_w"]))
        for k in (3, 5, 7)
    ]
    hidden = down + sum(filtered) / 3
    return pointwise(F.gelu(hidden + pointwise(hidden, "project")), "up")


def composed(y: Tensor, method: LoRand | Compacter, own: Tensors) -> Tensor:
    """The addition of an adapter whose maps are sums of products. y: [..., d]"""
    down: Tensor | float = 0.0
    up: Tensor | float = 0.0
    if isinstance(method, LoRand):
        for i in range(method.branches):
            down = down + own["down_p"][i] @ own["kernel"][i] @ own["down_q"][i]
            up = up + own["up_p"][i] @ own["kernel"][i] @ own["up_q"][i]
    else:
        for i, a in enumerate(own["shared.a"]):
            down = down + torch.kron(a, own["down_s"][i] @ own["down_t"][i])
            up = up + torch.kron(a, own["up_s"][i] @ own["up_t"][i])
    return F.gelu(y @ down + own["down_b"]) @ up + own["up_b"]


def refined(y: Tensor, method: Rein, own: Tensors) -> Tensor:
    """Rein's addition. y: [..., d]"""
    tokens = own["tokens"] if method.rank is None else own["a"] @ own["b"]
    weights = torch.exp(y @ tokens.T / y.shape[-1] ** 0.5)
    weights = weights / weights.sum(-1, keepdim=True)
    values = tokens @ own["maps.token_w"].T + own["maps.token_b"]
    mixed = sum(weights[..., i : i + 1] * values[i] for i in range(1, method.tokens))
    return (y + mixed) @ own["maps.feature_w"].T + own["maps.feature_b"]


def before_map(x: Tensor, method: RepAdapter, own: Tensors) -> Tensor:
    """RepAdapter's input of the map. x: [..., in]"""
    hidden = F.linear(x, own["down_w"], own["down_b"])
    size, width = x.shape[-1] // method.groups, method.width // method.groups
    blocks = [
        hidden[..., g * width : (g + 1) * width] @ own["up_w"][g * size : (g + 1) * size].T
        for g in range(method.groups)
    ]
    return x + method.scale * (torch.cat(blocks, -1) + own["up_b"])


def module_formula(method: Method, own: Tensors, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The output of one delta at a module."""
    match method:
        case DoRA():
            weight = module.get_parameter("weight")
            bias = along(module.get_parameter("bias"), y, module)
            update = applied(change(weight, method, own), x, module)
            return bias + along(gain(weight, method, own), y, module) * (y - bias + update)
        case LoRA() | AdaLoRA() | VeRA() | LoHa() | LoKr() | FourierFT() | OFT() | BOFT() | FacT() | Sparse():
            return y + applied(change(module.get_parameter("weight"), method, own), x, module)
        case ScaleShift():
            return y * along(own["gain"], y, module) + along(own["offset"], y, module)
        case IA3():
            index = rows(method.parts, y.shape[-1]) if method.parts else torch.arange(y.shape[-1])
            return y * torch.ones_like(y[0, 0]).index_copy(0, index, own["gain"])
        case Adapter():
            if isinstance(module, nn.Conv2d):
                return adapted(x.movedim(1, -1), y.movedim(1, -1), method, own).movedim(-1, 1)
            return adapted(x, y, method, own)
        case LoRand() | Compacter() | Rein():
            update = refined if isinstance(method, Rein) else composed
            dim = 1 if isinstance(module, nn.Conv2d) else -1
            return y + update(y.movedim(dim, -1), method, own).movedim(-1, dim)
        case RepAdapter():
            # in a plain model the map got x itself
            return F.linear(before_map(x, method, own), module.weight, module.bias)
        case Convpass():
            return y + bypass(x, method, own)
        case Mona():
            return y + cognitive(y, own)
        case _:
            raise AssertionError(method)


def weight_formula(method: Method, own: Tensors, weight: Tensor) -> Tensor:
    """A parameter with one delta."""
    changed = weight + change(weight, method, own)
    if isinstance(method, DoRA):
        return changed * gain(weight, method, own).view(-1, *(1 for _ in weight.shape[1:]))
    return changed


@contextmanager
def hooked(base: nn.Module, site: str, method: Method, own: Tensors) -> Iterator[None]:
    """Within it, the output of the site in the plain model goes through the formula."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        y = output if isinstance(output, Tensor) else output[0]
        result = module_formula(method, own, module, args[0], y)
        return result if isinstance(output, Tensor) else (result, *output[1:])

    handle = base.get_submodule(site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def explicit(case: Any, model: nn.Module, base: nn.Module, x: Tensor) -> Tensor:
    """The plain model's output with the injected model's tensors put into the formulas. base: double."""
    methods = case.methods if isinstance(case.methods, tuple) else (case.methods,)
    deltas = attached(model)
    sites = list(dict.fromkeys(item.site for item in deltas))
    assert len(deltas) == len(sites) * len(methods) > 0
    replaced = {f"head.{name}": parameter for name, parameter in model.get_submodule("head").named_parameters()}
    with ExitStack() as stack:
        for site in sites:
            for method, item in zip(methods, [item for item in deltas if item.site == site], strict=True):
                own = {**dict(item.delta.named_parameters()), **dict(item.delta.named_buffers())}
                if site in dict(base.named_parameters()):
                    replaced[site] = weight_formula(method, own, base.get_parameter(site).detach())
                else:
                    stack.enter_context(hooked(base, site, method, own))
        result: Tensor = functional_call(base, replaced, x)
    return result


def test_formula__gives_the_outputs(formula_case, build: Build, images: Tensor, shake: Shake) -> None:
    model, base = build().double(), build().double()
    inject(model, formula_case.plan)
    shake(model)
    x = images.double()
    wanted = explicit(formula_case, model, base, x)
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)
    assert (wanted - base(x)).abs().max() > 1e-3
    torch.testing.assert_close(model.float()(images).double(), wanted, rtol=1e-4, atol=1e-4)


def test_formula__gives_the_gradients(formula_case, build: Build, images: Tensor, shake: Shake) -> None:
    model, base = build().double(), build().double()
    inject(model, formula_case.plan)
    shake(model)
    x = images.double().requires_grad_()
    names, trained = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    ours = torch.autograd.grad(model(x).square().sum(), (x, *trained))
    wanted = torch.autograd.grad(explicit(formula_case, model, base, x).square().sum(), (x, *trained))
    for name, mine, theirs in zip(("x", *names), ours, wanted, strict=True):
        assert theirs.abs().max() > 1e-9, name
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.5), DoRA(rank=2, dropout=0.5)], ids=["lora", "dora"])
def test_formula__drops_inputs_of_the_update_alone(method: LoRA | DoRA, build: Build, shake: Shake) -> None:
    """In training, the update reads `x * mask / (1 - dropout)` and the frozen map x; in eval there is no mask."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 5)).double()
    model = nn.Sequential(nn.Linear(4, 5)).double()
    model.load_state_dict(base.state_dict())
    inject(model, Plan({"0": method}))
    shake(model)
    own = dict(attached(model)[0].delta.named_parameters())
    x = torch.ones(1000, 4, dtype=torch.float64)
    outputs = model.train()(x).detach()
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0], dtype=torch.float64)] * 4)  # [16, 4]
    update = change(base[0].weight, method, own)
    scale = gain(base[0].weight, method, own) if isinstance(method, DoRA) else 1.0
    possible = base[0].bias + scale * ((x[:1] @ base[0].weight.T) + masks @ update.T)
    is_near = (outputs[:, None] - possible).abs().amax(-1) < 1e-9  # [1000, 16]
    assert is_near.any(1).all()
    assert is_near.sum(0).min() > 30
    torch.testing.assert_close(model.eval()(x[:1]), module_formula(method, own, base[0], x[:1], base(x[:1])))
