"""Hold every registered method against the promises on timm's model families: one matrix, made from the registry.

    python tools/check_families.py --json tools/results/families.json
    python tools/check_families.py --families vit swin --methods lora oft

For each family, method and kind of place (linear maps, convolutions, norms, blocks, the weight of a linear map):
outputs equal to the bit at the start, gradients of the formula (a directional derivative in float64), a gradient for
everything that is trained, a base that training leaves as it was, merged equal to unmerged, an adapter file that
restores all, and the original model after `remove`. A place that the method refuses with an error of its own is counted
as such. Models are small and have random weights.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from bench_adapters import processor
from torch import Tensor, nn

import vispeft as vp
from vispeft.peft.registry import known_methods, method_from_dict

# the least options of each method
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "adapter": {"width": 4},
    "scale_shift": {},
    "ia3": {},
    "vera": {"rank": 4},
    "adalora": {"rank": 2},
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "fourierft": {"frequencies": 8},
    "oft": {"block": 2},
    "boft": {"block": 2, "factors": 1},
    "fact": {"rank": 2, "scale": 1.0},
    "conv_lora": {"rank": 2, "experts": 2},
    "sparse": {"budget": 0.1, "rule": "magnitude"},
    "ladder": {"width": 4},
    "vpt": {"tokens": 2},
    "convpass": {"width": 4},
    "mona": {"width": 4},
    "repadapter": {"width": 4},
    "lorand": {"width": 4, "rank": 2},
    "compacter": {"width": 4, "n": 2},
    "rein": {"tokens": 3, "rank": 2},
    "prefix": {"tokens": 2},
}
# DoRA takes the norm of the weight as a constant in the backward pass (section 4.3 of its paper)
NOT_THE_DERIVATIVE = ("dora",)

_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 2, "img_size": 64}
_SWIN = {"depths": (1, 1, 2, 1), "img_size": 64, "window_size": 2, "embed_dim": 24}
_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", _VIT, 64),
    "vit_dinov2": ("vit_small_patch14_reg4_dinov2", {**_VIT, "img_size": 56}, 56),
    "vit_dinov3": ("vit_small_patch16_dinov3", _VIT, 64),
    "deit3": ("deit3_small_patch16_224", _VIT, 64),
    "beit": ("beit_base_patch16_224", _VIT, 64),
    "eva02": ("eva02_tiny_patch14_224", {**_VIT, "img_size": 56}, 56),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN, 64),
    "swinv2": ("swinv2_tiny_window8_256", _SWIN, 64),
    "convnext": ("convnext_atto", _CONVNEXT, 64),
    "convnextv2": ("convnextv2_atto", _CONVNEXT, 64),
    "pvt_v2": ("pvt_v2_b0", {"embed_dims": (16, 32, 40, 64)}, 64),
    "xcit": ("xcit_nano_12_p16_224", {}, 64),
    "edgenext": ("edgenext_xx_small", {}, 64),
    "efficientvit": ("efficientvit_b0", {}, 64),
    "fastvit": ("fastvit_t8", {}, 64),
    "mobilenetv4": ("mobilenetv4_conv_small", {}, 64),
    "resnet": ("resnet18", {"channels": (16, 24, 32, 48)}, 64),
    "resnetv2": ("resnetv2_50", {"layers": (1, 1, 1, 1), "channels": (16, 32, 48, 64)}, 64),
    "efficientnet": ("efficientnet_b0", {}, 64),
    "regnet": ("regnety_002", {}, 64),
    "repvit": ("repvit_m0_9", {"embed_dim": (16, 32, 48, 64), "depth": (1, 1, 2, 1)}, 64),
}
_MOST_SITES = 3


@dataclass(frozen=True)
class Family:
    """A model and the places in it, by kind: names of modules or parameters."""

    build: Callable[[], nn.Module]
    images: Tensor
    places: dict[str, str]


def family(name: str) -> Family:
    """Return a family of `FAMILIES`, with the modules that its forward pass calls as places."""
    model_name, options, side = FAMILIES[name]

    @functools.cache
    def first() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(model_name, num_classes=5, **options).eval()
        with torch.no_grad():
            # timm starts some heads, scales and last norms at zero, which would hide everything before them
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    def build() -> nn.Module:
        return copy.deepcopy(first())

    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Family(build, images, _places(build(), images))


def _places(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Return the patterns of some sites of each kind that the forward pass calls."""
    names = {module: name for name, module in model.named_modules()}
    called: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda each, *_: called.append(each)) for module in names]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    kinds: dict[str, list[nn.Module]] = {
        "linear": [each for each in called if isinstance(each, nn.Linear)],
        "convolution": [each for each in called if isinstance(each, nn.Conv2d)],
        "norm": [each for each in called if "norm" in type(each).__name__.lower() and list(each.parameters())],
        "block": [each for each in called if type(each).__name__.lower().endswith("block")],
    }
    # from the end, where every delta reaches the output and a step is quick; without the classifier
    chosen = {kind: list(dict.fromkeys(reversed(found)))[1 : _MOST_SITES + 1] for kind, found in kinds.items()}
    places = {kind: " | ".join(names[each] for each in modules) for kind, modules in chosen.items() if modules}
    if chosen["linear"]:
        places["parameter"] = f"{names[chosen['linear'][0]]}.weight"
    return places


class BrokenPromise(Exception):
    """A promise that does not hold, by name."""


def check_place(each: Family, method: vp.Method, pattern: str) -> str:
    """Return "ok" or "refused: <error>"; raise BrokenPromise."""
    plan = vp.Plan({pattern: method})
    model = each.build()
    base_keys = model.state_dict().keys()
    before = _answer(model, each.images)
    try:
        vp.inject(model, plan)
        vp.check(model, each.images)
    except vp.VispeftError as error:
        return f"refused: {error}"
    if method.is_identity_at_start:
        _hold("identity at start", torch.equal(_answer(model, each.images), before))
    base = {key: value.clone() for key, value in model.state_dict().items() if key in base_keys}
    _train(model, each.images)
    _hold("base unchanged", all(torch.equal(model.state_dict()[key], value) for key, value in base.items()))
    after = _answer(model.eval(), each.images)
    _hold("training has an effect", not torch.equal(after, before))
    _check_file(each, model, after)
    if method.name not in NOT_THE_DERIVATIVE:
        _check_gradient(each, plan)
    merges = _check_merge(each, plan)
    vp.remove(model)
    _hold("remove", torch.equal(_answer(model, each.images), before))
    return "ok" if merges else "ok, does not merge"


def _hold(promise: str, holds: bool) -> None:
    if not holds:
        raise BrokenPromise(promise)


@torch.no_grad()
def _answer(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's output without gradients."""
    output: Tensor = model(images)
    return output


def _stir(model: nn.Module, size: float) -> None:
    """Give every trained parameter another value."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))


def _train(model: nn.Module, images: Tensor) -> None:
    """Take two steps; every trained parameter must get a gradient."""
    vp.train_mode(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (model(images) - 1).square().sum().backward()
        _hold("a gradient for everything", all(parameter.grad is not None for parameter in trained))
        optimizer.step()


def _check_file(each: Family, model: nn.Module, answer: Tensor) -> None:
    """The adapter file must give a fresh base the same outputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        vp.save_adapter(model, path)
        fresh = each.build()
        vp.load_adapter(fresh, path)
    _hold("round trip", torch.equal(_answer(fresh, each.images), answer))


def _check_gradient(each: Family, plan: vp.Plan) -> None:
    """The gradient along a random direction must be the central difference of the loss, in float64."""
    # the linear attention of EfficientViT goes to float32 in a model of any precision, whose rounding hides the slope
    with mock.patch.object(Tensor, "float", Tensor.double):
        _compare_slopes(each, plan)


def _compare_slopes(each: Family, plan: vp.Plan) -> None:
    """Compare the gradient with the central difference."""
    model = each.build().double()
    vp.inject(model, plan)
    images = each.images.double()
    _stir(model, 0.05)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(parameter.shape, generator=generator).to(parameter) for parameter in trained]
    model(images).square().sum().backward()
    slope = sum(float((p.grad * d).sum()) for p, d in zip(trained, direction, strict=True) if p.grad is not None)
    step, losses = 1e-7, []  # small, for kinks of ReLU
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, change in zip(trained, direction, strict=True):
                parameter.add_(change, alpha=sign * step)
            losses.append(float(model(images).square().sum()))
            for parameter, change in zip(trained, direction, strict=True):
                parameter.sub_(change, alpha=sign * step)
    difference = (losses[0] - losses[1]) / (2 * step)
    _hold(
        f"true gradient ({slope:.6g}, but {difference:.6g})", abs(slope - difference) <= 1e-4 * abs(difference) + 1e-6
    )


def _check_merge(each: Family, plan: vp.Plan) -> bool:
    """Merged must equal unmerged within rounding, in float64. Returns False for a plan that does not merge."""
    model = each.build().double()
    vp.inject(model, plan)
    _stir(model, 0.05)
    images = each.images.double()
    unmerged = _answer(model, images)
    merged = copy.deepcopy(model)
    try:
        vp.merge(merged)
    except vp.VispeftError:
        return False
    _hold("merge", torch.allclose(_answer(merged, images), unmerged, rtol=1e-6, atol=1e-6))
    return True


def matrix(families: list[str], methods: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield family, method, kind of place, and "ok ...", "refused: ..." or "FAIL: ...", for all combinations."""
    for name in families:
        each = family(name)
        for method_name in methods:
            method = method_from_dict({"method": method_name, **OPTIONS[method_name]})
            for kind, pattern in each.places.items():
                try:
                    outcome = check_place(each, method, pattern)
                except Exception as error:  # the matrix goes on; what is raised is its result
                    outcome = f"FAIL: {type(error).__name__}: {error}"
                yield name, method_name, kind, outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--methods", nargs="+", choices=known_methods(), default=list(known_methods()))
    parser.add_argument("--json", type=Path, help="file for the whole table")
    args = parser.parse_args()
    missing = [name for name in args.methods if name not in OPTIONS]
    if missing:
        parser.error(f"OPTIONS of this file lack the methods {', '.join(missing)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table: dict[str, dict[str, dict[str, str]]] = {}
    counts = {"ok": 0, "refused": 0, "FAIL": 0}
    for name, method, kind, outcome in matrix(args.families, args.methods):
        table.setdefault(name, {}).setdefault(method, {})[kind] = outcome
        counts[outcome.split(":")[0].split(",")[0]] += 1
        if outcome.startswith("FAIL"):
            print(f"{name}, {method} at {kind}: {outcome}", flush=True)
    print(", ".join(f"{number} {word}" for word, number in counts.items()))
    if args.json:
        facts = {
            "machine": f"{platform.machine()}, {processor()}, 1 thread, torch {torch.__version__}",
            "timm": timm.__version__,
            "counts": counts,
        }
        args.json.write_text(json.dumps({**facts, "families": table}, indent=1) + "\n")
    raise SystemExit(counts["FAIL"] > 0)


if __name__ == "__main__":
    main()
