"""The tables of docs/methods.md against the registry, the test cases, and what is counted."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vispeft.peft import METHODS, Method, Plan, count, inject, method_from_dict

ROOT = Path(__file__).parents[1]
MATHEMATICS, COST = "Mathematics", "Cost and choice"
# headings of the columns
PARAMETERS, FLOPS, KEPT = "parameters of a site", "FLOPs of a token", "numbers kept of a token"

# options of each row, and the values of the letters of its formulas beside the widths
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "lora": ({"rank": 4}, {"r": 4}),
    "dora": ({"rank": 4}, {"r": 4}),
    "vera": ({"rank": 4}, {"r": 4}),
    "adalora": ({"rank": 4}, {"r": 4}),
    "loha": ({"rank": 4}, {"r": 4}),
    "lokr": ({"rank": 2, "factor": 8}, {"r": 2, "in1": 8, "out1": 8}),
    "fourierft": ({"frequencies": 30}, {"f": 30}),
    "oft": ({"block": 8}, {"k": 8}),
    "boft": ({"block": 8, "factors": 2}, {"k": 8, "m": 2}),
    "fact": ({"rank": 2, "scale": 1.0}, {"r": 2}),
    "conv_lora": ({"rank": 3, "experts": 2}, {"r": 3, "n": 2}),
    "sparse": ({"budget": 0.125}, {"p": 0.125}),
    "adapter": ({"width": 6, "count": 2}, {"w": 6, "n": 2}),
    "adapter, parallel": ({"width": 6, "count": 2, "parallel": True}, {"w": 6, "n": 2}),
    "convpass": ({"width": 6}, {"w": 6}),
    "mona": ({"width": 6}, {"w": 6}),
    "repadapter": ({"width": 6, "groups": 2}, {"w": 6, "g": 2}),
    "lorand": ({"width": 6, "rank": 3, "branches": 2}, {"w": 6, "r": 3, "n": 2}),
    "compacter": ({"width": 8, "n": 4, "rank": 2}, {"w": 8, "n": 4, "r": 2}),
    "rein": ({"tokens": 5, "rank": 3}, {"m": 5, "r": 3}),
    "scale_shift": ({}, {}),
    "ia3": ({}, {}),
    "vpt": ({"tokens": 5}, {"T": 5}),
    "prefix": ({"tokens": 5}, {"T": 5}),
    "ladder": ({"width": 6}, {"w": 6}),
}
# not a method, and no delta at a single map
NOT_COUNTED = ("in full",)
# methods whose sites are blocks, the cost of which is that of all sites together
AT_BLOCKS = ("vpt", "prefix", "ladder")
# the cost depends on the expert that the gate chooses
IN_WORDS = ("conv_lora",)
INPUTS, OUTPUTS = 64, 32


class Block(nn.Module):
    """A block that tells its widths by the map in it."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.map(x)
        return result


class Tokens(nn.Module):
    """A linear map of the tokens of a feature map, behind a frozen LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, INPUTS, 1), nn.LayerNorm(INPUTS)
        self.first, self.map = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, OUTPUTS)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        result: Tensor = self.map(self.norm(self.first(x)))
        return result


def rows(title: str) -> dict[str, dict[str, str]]:
    """The rows of the table of a section, by method, each by the heads of the columns."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    head = [cell.strip("| ") for cell in head]
    return {name_of(cells[0]): dict(zip(head, cells, strict=True)) for cells in body}


def name_of(cell: str) -> str:
    """`adapter, parallel` of a cell with a link."""
    return re.sub(r"\]\([^)]*\)|[\[`]", "", cell).strip("| ")


def value_of(cell: str, letters: Mapping[str, float]) -> float | None:
    """The value of a cell's formula, such as `2 r (in + out)`; None where the cell is not a formula alone."""
    found = re.match(r"`([^`]+)`(?= on average$|;|$)", cell)
    if found is None:
        return None
    code = re.sub(r"\bin\b", "inputs", found[1].replace("²", "**2"))
    # what stands side by side is multiplied
    code = re.sub(r"(?<=[\w)]) +(?=[\w(])", " * ", code)
    return float(eval(code, {}, {"inputs": INPUTS, "out": OUTPUTS, "d": OUTPUTS, **letters}))


def method_of(name: str) -> Method:
    return method_from_dict({"method": name.partition(",")[0], **EXAMPLES[name][0]})


def chosen(method: Method) -> Method:
    """The same method, of a kind that needs no data where it would."""
    return method_from_dict({**method.to_dict(), "rule": "magnitude"}) if method.name == "sparse" else method


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    """The module of tests/peft/conftest.py with its CASES."""
    spec = importlib.util.spec_from_file_location("peft_cases", ROOT / "tests" / "peft" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("title", [MATHEMATICS, COST])
def test_tables__have_a_row_for_every_method(title: str) -> None:
    names = rows(title)
    assert {name.partition(",")[0] for name in names if name not in NOT_COUNTED} == METHODS.keys()
    assert list(rows(MATHEMATICS)) == list(names)
    assert EXAMPLES.keys() == {name for name in names if name not in NOT_COUNTED}


@pytest.mark.parametrize("name", EXAMPLES)
def test_mathematics__agrees_with_the_cases_of_the_promises(name: str, cases: ModuleType) -> None:
    row = rows(MATHEMATICS)[name]
    alone = [
        case
        for case in cases.CASES.values()
        if isinstance(case.methods, Method) and case.methods.name == name.partition(",")[0]
    ]
    assert {"yes" if case.merges else "no" for case in alone} == {row["merges"]}
    assert row["identity at start"] == ("yes" if method_of(name).is_identity_at_start else "no")


@pytest.mark.parametrize("name", EXAMPLES)
def test_mathematics__counts_the_parameters_of_a_site(name: str) -> None:
    numbers = []
    for num_sites in (2, 3):
        model = nn.ModuleDict({"blocks": nn.ModuleList([Block() for _ in range(num_sites)])})
        inject(model, Plan({"blocks.*" if name in AT_BLOCKS else "blocks.*.map": method_of(name)}))
        numbers.append(sum(count(model).deltas.values()))
    # what sites share is in both
    assert value_of(rows(MATHEMATICS)[name][PARAMETERS], EXAMPLES[name][1]) == numbers[1] - numbers[0]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in (*AT_BLOCKS, *IN_WORDS)])
def test_cost__counts_the_operations_and_the_memory_of_a_token(name: str) -> None:
    small, large = (measured(chosen(method_of(name)), side) for side in (16, 24))
    num_tokens = 24**2 - 16**2
    flops, kept = ((b - a) / num_tokens for a, b in zip(small, large, strict=True))
    row = rows(COST)[name]
    assert value_of(row[FLOPS], EXAMPLES[name][1]) == flops
    # `r`, and y where `out` is above `in`: of this map it is not
    assert value_of(row[KEPT].partition(",")[0], EXAMPLES[name][1]) == kept


def measured(method: Method, side: int) -> tuple[float, float]:
    """FLOPs and float32 numbers kept for the backward pass, of all tokens, beyond those of the frozen model."""
    results = []
    for plan in (Plan(), Plan({"map": method})):
        torch.manual_seed(0)
        model = Tokens()
        inject(model, plan)
        images = torch.randn(1, 3, side, side, requires_grad=True)
        kept = saved_numbers(model, images)
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            model.eval()(images)
        results.append((counter.get_total_flops(), kept))
    (flops, kept), (flops_with, kept_with) = results
    return flops_with - flops, kept_with - kept


def addmm_flops(out: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """FLOPs of a product of matrices that is added to one in place, which torch's counter does not know."""
    return 2 * a[0] * a[1] * b[1]


IN_PLACE = {torch.ops.aten.addmm_: addmm_flops}


def saved_numbers(model: nn.Module, images: Tensor) -> float:
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own and pointer not in saved:
            saved[pointer] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # the address of a freed storage could be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(saved.values()) / 4
