"""Counts of trained parameters, compared with the tensors in the adapter file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from vispeft.peft import IA3, Adapter, DoRA, LoRA, Plan, ScaleShift, inject, save_adapter
from vispeft.report.trained import read_trained


class Stage(nn.Module):
    """A linear map, a norm with statistics, and a child with the name of a method."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 18)
        self.adapter = nn.Linear(18, 4)
        self.norm = nn.BatchNorm2d(5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Stage(), Stage()])
        self.head = nn.Linear(4, 3)


def sizes(path: Path) -> dict[str, int]:
    """Return the number of values of each tensor in a file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118


def saved(plan: Plan, folder: Path) -> Path:
    torch.manual_seed(0)
    model = Net()
    inject(model, plan)
    save_adapter(model, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


PLANS = {
    "two lora": {"encoder.*.fc": (LoRA(rank=1), LoRA(rank=2))},
    "equal lora": {"encoder.*.fc": (LoRA(rank=2), LoRA(rank=2), LoRA(rank=2))},
    "mixed": {"encoder.*.fc": (LoRA(rank=3), ScaleShift(), LoRA(rank=1), DoRA(rank=1), IA3())},
    "two adapters": {"encoder.*.fc": (Adapter(width=2, count=2), Adapter(width=3))},
    "two on a weight": {"encoder.*.fc.weight": (LoRA(rank=1), LoRA(rank=2)), "encoder.*.fc": LoRA(rank=3)},
    "beside a child of the method's name": {"encoder.*": Adapter(width=2), "encoder.0.adapter": LoRA(rank=1)},
}


@pytest.mark.parametrize("deltas", PLANS.values(), ids=PLANS)
def test_read_trained__counts_every_tensor_of_the_file_once(deltas: dict[str, LoRA], tmp_path: Path) -> None:
    path = saved(Plan(deltas, ["head.**", "encoder.*.adapter.bias", "encoder.1.norm"]), tmp_path)
    trained = read_trained(path)
    assert trained is not None
    own = {key: size for key, size in sizes(path).items() if "running_" not in key and "num_batches" not in key}
    assert trained.num_params == sum(own.values())
    assert sum(row.num_params for row in trained.sites) == sum(own.values())
    assert {region.name: region.num_params for region in trained.regions} == {
        "encoder": sum(size for key, size in own.items() if key.startswith("encoder.")),
        "head": sum(size for key, size in own.items() if key.startswith("head.")),
    }
    assert sum(region.share for region in trained.regions) == pytest.approx(1)


def test_read_trained__gives_each_of_several_deltas_at_a_site_its_own_tensors(tmp_path: Path) -> None:
    path = saved(Plan({"encoder.*.fc": (LoRA(rank=1), ScaleShift(), LoRA(rank=2))}, []), tmp_path)
    own: Counter[str] = Counter()
    for key, size in sizes(path).items():
        own[key.split(".")[3]] += size
    trained = read_trained(path)
    assert trained is not None
    assert [(row.how, row.num_sites, row.num_params) for row in trained.sites] == [
        ("lora, rank 1", 2, own["lora"]),
        ("scale_shift", 2, own["scale_shift"]),
        ("lora, rank 2", 2, own["lora_2"]),
    ]
    assert own == {"lora": 2 * (10 + 18), "scale_shift": 2 * 2 * 18, "lora_2": 2 * 2 * (10 + 18)}


def test_read_trained__counts_a_site_with_equal_deltas_once(tmp_path: Path) -> None:
    path = saved(Plan({"encoder.*.fc": (LoRA(rank=2), LoRA(rank=2))}, ["head.**"]), tmp_path)
    trained = read_trained(path)
    assert trained is not None
    assert [(row.pattern, row.how, row.num_sites, row.num_params) for row in trained.sites] == [
        ("encoder.*.fc", "lora, rank 2", 2, 4 * 2 * (10 + 18)),
        ("head", "trained in full", 1, 15),
    ]


def test_read_trained__is_none_without_a_file(tmp_path: Path) -> None:
    assert read_trained(tmp_path / "adapter.safetensors") is None
