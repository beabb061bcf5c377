#!/usr/bin/env python
"""Compare a step of LoRA through vispeft with one through the `peft` library and one of full fine-tuning.

    python tools/bench_peft_library.py --json tools/results/peft_library_cpu.json

Models have random weights: a timm ViT-S/16 at 224 px, batch 8, with LoRA at all maps of its blocks, and transformers'
Mask2Former on Swin-T at 256 px, batch 1, with LoRA at q and v of the backbone and at the deformable attention. Both
libraries train the same parameters. One thread; all methods alternate, and a ratio is the median over rounds of the
ratios within a round. `kept` is the exact size of the distinct storages that autograd keeps for the backward pass,
without parameters. Needs `timm`, `transformers` and `peft`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vispeft as vp
from vispeft.training.processor import cpu_info

RANK, ALPHA = 8, 16
VIT_SITES = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
MASK2FORMER_SITES = (
    r"model\.pixel_level_module\.encoder\..*\.attention(\.self)?\.(q_proj|v_proj|query|value)"
    r"|model\.pixel_level_module\.decoder\.encoder\.layers\.\d+\.self_attn\."
    r"(value_proj|sampling_offsets|attention_weights|output_proj)"
)
Loss = Callable[[nn.Module], Tensor]


def vit() -> tuple[nn.Module, Loss, str, tuple[str, ...], list[str]]:
    """Return a model, its loss, the regex of its sites, and what is trained in full, for vispeft and for peft."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    images, labels = torch.randn(8, 3, 224, 224), torch.arange(8)
    return model, lambda each: F.cross_entropy(each(images), labels), VIT_SITES, ("head",), ["head"]


def mask2former() -> tuple[nn.Module, Loss, str, tuple[str, ...], list[str]]:
    """Return the same of Mask2Former."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = SwinConfig(image_size=256, drop_path_rate=0.0, out_features=stages)
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, num_labels=10))
    masks = torch.zeros(5, 256, 256)
    for index in range(5):
        masks[index, index * 40 : index * 40 + 80, 64:160] = 1.0
    batch = {"pixel_values": torch.randn(1, 3, 256, 256), "mask_labels": [masks], "class_labels": [torch.arange(5)]}

    def loss(each: nn.Module) -> Tensor:
        torch.manual_seed(0)
        found: Tensor = each(**batch).loss
        return found

    trained = ("class_predictor", "**.mask_embedder")
    return model, loss, MASK2FORMER_SITES, trained, ["class_predictor", "mask_embedder"]


MODELS = {"vit_small": vit, "mask2former": mask2former}


def build(name: str, method: str) -> tuple[nn.Module, Loss]:
    """Return a model in train mode under a method, and its loss."""
    model, loss, sites, trained, saved = MODELS[name]()
    if method == "vispeft":
        names = [site for site, _ in model.named_modules() if re.fullmatch(sites, site)]
        vp.inject(model, vp.Plan({site: vp.LoRA(rank=RANK, alpha=ALPHA) for site in names}, train=trained))
        vp.train_mode(model)
        return model, loss
    if method == "peft":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=rf"(.*\.)?({sites})", modules_to_save=saved)
        model = get_peft_model(model, config)
    return model.train(), loss


def kept_mb(model: nn.Module, loss: Loss) -> float:
    """Return MiB that autograd keeps for the backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**20


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the measurements of one model by method."""
    built = {method: build(name, method) for method in ("vispeft", "peft", "full")}
    results: dict[str, dict[str, float]] = {}
    optimizers = {}
    for method, (model, loss) in built.items():
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizers[method] = torch.optim.AdamW(trained, lr=1e-4)
        count = sum(parameter.numel() for parameter in trained)
        results[method] = {"trained": count, "kept_mb": round(kept_mb(model, loss), 1)}
    times: dict[str, list[float]] = {method: [] for method in built}
    for _ in range(rounds + 1):
        for method, (model, loss) in built.items():
            began = time.process_time()
            loss(model).backward()  # type: ignore[no-untyped-call]
            optimizers[method].step()
            optimizers[method].zero_grad()
            times[method].append(time.process_time() - began)
    for method, result in results.items():
        ratios = [ours / theirs for ours, theirs in zip(times[method][1:], times["peft"][1:], strict=True)]
        result["step_s"] = round(statistics.median(times[method][1:]), 3)
        result["time_over_peft"] = round(statistics.median(ratios), 3)
        result["kept_over_peft"] = round(result["kept_mb"] / results["peft"]["kept_mb"], 3)
    return results


def main() -> None:
    """Measure the models, print the numbers and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after an untimed one")
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    libraries = ("peft", "timm", "transformers")
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        parser.error(f"{', '.join(missing)} must be installed for the comparison: pip install {' '.join(missing)}")
    torch.set_num_threads(1)
    # keep freed memory, or page faults count as time of the method that frees more
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-4, 0)
    libc.mallopt(-1, 2**31 - 1)
    results = {}
    for name in args.models:
        results[name] = measure(name, args.rounds)
        for method, result in results[name].items():
            print(f"{name:12} {method:8} {result}", flush=True)
    if args.json:
        versions = {library: version(library) for library in ("torch", *libraries)}
        machine = {"cpu": cpu_info("model name"), "threads": 1, "rounds": args.rounds, **versions}
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
