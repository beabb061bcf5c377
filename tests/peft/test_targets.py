"""The pattern language."""

import pytest
import timm
import torch
from torch import nn

from vispeft.errors import PlanError
from vispeft.peft import Names
from vispeft.peft.targets import expand


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv = nn.LayerNorm(2), nn.Linear(2, 6)


@pytest.fixture
def names() -> Names:
    model = nn.Module()
    model.blocks = nn.ModuleList([Block() for _ in range(12)])
    model.stages_0, model.stages_1, model.stages_2 = Block(), Block(), Block()
    model.norm = nn.LayerNorm(2)
    model.first = nn.Linear(2, 2)
    model.second = model.first
    return Names(model)


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [
        ("blocks.*.qkv", range(12)),
        ("blocks.[6:].qkv", range(6, 12)),
        ("blocks.[-2:].qkv", (10, 11)),
        ("blocks.[0].qkv", (0,)),
        ("blocks.[-1].qkv", (11,)),
        ("blocks.[2:8:3].qkv", (2, 5)),
        ("blocks.1*.qkv", (1, 10, 11)),
        ("blocks.0.qkv | blocks.3.qkv", (0, 3)),
    ],
)
def test_sites__reads_wildcards_and_ranges(names: Names, pattern: str, blocks: range) -> None:
    assert [site.name for site in names.sites(pattern)] == [f"blocks.{index}.qkv" for index in blocks]


def test_sites__a_double_star_is_any_number_of_components(names: Names) -> None:
    assert len(names.sites("**.qkv")) == 15
    assert [site.name for site in names.sites("**.norm")] == ["norm"]
    assert len(names.sites("**.norm*")) == 16


def test_sites__ranges_work_after_a_stem(names: Names) -> None:
    assert [site.name for site in names.sites("stages_[1:].qkv")] == ["stages_1.qkv", "stages_2.qkv"]


def test_sites__names_parameters_only_where_no_module_matches(names: Names) -> None:
    assert all(site.parameter is None for site in names.sites("blocks.0.*"))
    (site,) = names.sites("blocks.0.qkv.weight")
    assert (site.name, site.parameter) == ("blocks.0.qkv.weight", "weight")


def test_sites__a_shared_module_is_one_site_under_its_first_name(names: Names) -> None:
    assert [site.name for site in names.sites("first | second")] == ["first"]
    assert [site.name for site in names.sites("second")] == ["first"]


def test_sites__roles_are_data_and_take_a_range(names: Names) -> None:
    roles = {"encoder.qkv": "blocks.*.qkv | stages_*.qkv", "blocks": "blocks.*.qkv"}
    assert len(names.sites("@encoder.qkv", roles)) == 15
    assert [site.name for site in names.sites("@blocks[10:]", roles)] == ["blocks.10.qkv", "blocks.11.qkv"]
    assert expand("@blocks | norm", roles) == ["blocks.*.qkv", "norm"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.*.qvk", r"`blocks\.\*\.qvk` matches no module or parameter of this model.*`blocks\.\*\.qkv`"),
        ("blocks.[12:].qkv", "matches no module"),
        ("blocks.0.qkv | blocks.0.nothing", r"that is `blocks\.0\.nothing`"),
        ("blocks.[x].qkv", r"`\[x\]` must be a name"),
        ("blocks.[].qkv", r"`\[\]` must be a name"),
        ("blocks.[::0].qkv", "a step other than 0"),
        ("blocks..qkv", "is not a pattern"),
        ("blocks.a**.qkv", "is not a pattern"),
        ("@encoder.qkv", r"no roles were given\. Pass `roles=`"),
    ],
)
def test_sites__refuses_what_matches_nothing(names: Names, pattern: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        names.sites(pattern)


def test_sites__refuses_an_unknown_role_with_the_nearest_one(names: Names) -> None:
    with pytest.raises(PlanError, match=r"`@encoder\.qvk` is not a role.*Did you mean `encoder\.qkv`\?"):
        names.sites("@encoder.qvk", {"encoder.qkv": "blocks.*.qkv"})
    with pytest.raises(PlanError, match=r"has no `\*` to narrow"):
        names.sites("@norm[1:]", {"norm": "norm"})


def test_sites__refuses_a_parameter_that_modules_share() -> None:
    model = nn.Module()
    model.embed, model.head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
    model.head.weight = model.embed.weight
    with pytest.raises(PlanError, match=r"shared by several modules \(embed\.weight, head\.weight\)"):
        Names(model).sites("head.weight")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("**", 64), ("norm", 2), ("norm.**", 2), ("**.bias", 32), ("blocks.[-2:].**", 8), ("second.weight", 1)],
)
def test_trained__takes_parameters_and_whole_modules(names: Names, pattern: str, count: int) -> None:
    assert len(names.trained(pattern)) == count


class L2NormBlock(nn.Module):
    """A block with `Norm` in its name: a parameter of its own, and a map inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.map = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)


def test_norms__are_found_by_type_under_any_name_and_without_roles() -> None:
    model = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)),
            "a": nn.GroupNorm(1, 2),
            "b": nn.RMSNorm(2),
            "plain": nn.LayerNorm(2, elementwise_affine=False),
            "norm": nn.Linear(2, 2),
            "block": L2NormBlock(),
            "act": timm.layers.BatchNormAct2d(2),
        }
    )
    names = Names(model)
    wanted = ["stem.1.weight", "stem.1.bias", "a.weight", "a.bias", "b.weight", "block.scale", "act.weight", "act.bias"]
    assert names.trained("@norms") == names.trained("@norms", {"encoder.qkv": "x"}) == wanted
    assert [site.name for site in names.sites("norm | @norms")] == ["norm", "stem.1", "a", "b", "block", "act"]
    assert names.trained("@norms", {"norms": "a"}) == ["a.weight", "a.bias"]
    with pytest.raises(PlanError, match=r"`@norm` is not a role of this model\. Did you mean `norms`"):
        names.trained("@norm", {"blocks": "x"})
    with pytest.raises(PlanError, match="none of its norms has parameters"):
        Names(nn.Sequential(nn.Linear(1, 1))).trained("@norms")
