"""Choice of single weights: budgets, rules against plain torch, products in the place of entries, files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import (
    LoRA,
    Plan,
    Sparse,
    check,
    choose_by_magnitude,
    choose_weights,
    count,
    inject,
    load_adapter,
    methods_to_choose,
    remove,
    restore_choices,
    save_adapter,
)
from vispeft.peft.inject import attached
from vispeft.training.trained_tensors import restore_tensors, trained_tensors


def maps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def images() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def losses(model: nn.Module) -> Iterator[Tensor]:
    """One loss for each image, computed when it is asked for."""
    return (F.cross_entropy(model(x[None]), torch.tensor([index % 3])) for index, x in enumerate(images()))


def image_gradients(site: str) -> Tensor:
    """Gradients of a weight of the plain model, by image: [5, out, in]."""
    model = maps()
    weight = model.get_submodule(site).weight
    return torch.stack([torch.autograd.grad(loss, weight)[0] for loss in losses(model)])


def chosen(model: nn.Module) -> dict[str, list[int]]:
    return {item.site: item.delta.update.indices.tolist() for item in attached(model)}


def wanted(scores: dict[str, Tensor], budget: int) -> dict[str, list[int]]:
    """Flat indices of the highest scores of all sites together, by site."""
    every = sorted(
        ((float(score), site, index) for site, one in scores.items() for index, score in enumerate(one.flatten())),
        reverse=True,
    )[:budget]
    return {site: sorted(index for _, own, index in every if own == site) for site in scores}


@pytest.mark.parametrize(
    ("rule", "score_of"),
    [("fisher", lambda g: g.square().sum(0)), ("gradient", lambda g: g.sum(0).abs())],
    ids=["fisher", "gradient"],
)
def test_choose_weights__takes_the_highest_scores_of_all_sites_together(rule: str, score_of) -> None:
    model = maps()
    inject(model, Plan({"0 | 2": Sparse(0.2, rule)}))
    choose_weights(model, losses(model))
    scores = {site: score_of(image_gradients(site)) for site in "02"}
    assert chosen(model) == wanted(scores, 28)
    assert count(model).deltas == {"sparse": 28}


def test_choose_weights__gps_takes_as_many_of_each_row() -> None:
    model = maps()
    inject(model, Plan({"0 | 2": Sparse(0.3, "gps")}))
    assert count(model).deltas == {"sparse": 10 * 2 + 8 * 3}
    choose_weights(model, losses(model))
    for site, per_row in (("0", 2), ("2", 3)):
        scores = image_gradients(site).sum(0).abs()
        rows = [wanted({"row": row}, per_row)["row"] for row in scores]
        assert chosen(model)[site] == [i * scores.shape[1] + j for i, row in enumerate(rows) for j in row]


def test_choose_weights__gps_leaves_no_row_without_an_entry() -> None:
    model = maps()
    inject(model, Plan({"0": Sparse(1e-6, "gps")}))
    choose_weights(model, losses(model))
    assert [index // 6 for index in chosen(model)["0"]] == list(range(10))


def test_sparse__magnitude_needs_no_data() -> None:
    model = maps()
    inject(model, Plan({"0 | 2.weight": Sparse(0.2, "magnitude")}))
    assert not methods_to_choose(model)
    assert chosen(model) == {
        {"0": "0", "2": "2.weight"}[site]: indices
        for site, indices in wanted(
            {site: maps().get_submodule(site).weight.detach().abs() for site in "02"}, 28
        ).items()
    }


@pytest.mark.parametrize("site", ["0", "0.weight"])
def test_choose_weights__serves_modules_and_parameters_alike(site: str) -> None:
    model = maps()
    inject(model, Plan({site: Sparse(0.2), "2": LoRA(2)}))
    choose_weights(model, losses(model))
    assert chosen_of_first(model) == wanted({"0": image_gradients("0").square().sum(0)}, 12)["0"]


def chosen_of_first(model: nn.Module) -> list[int]:
    indices: list[int] = attached(model)[0].delta.update.indices.tolist()
    return indices


def test_choose_weights__puts_products_in_the_place_of_many_entries_within_the_budget() -> None:
    model = maps()
    with torch.no_grad():
        model[0].weight.mul_(100)  # all of its weights come first
    inject(model, Plan({"0 | 2": Sparse(0.2, "magnitude", rank=1)}))
    first, second = (item.delta.update for item in attached(model))
    # a product of rank 1 has 6 + 10 parameters, and the 12 that are left of 28 go to the other site
    assert (first.a.shape, first.b.shape) == ((1, 6), (10, 1))
    assert len(second.values) == 12
    assert count(model).deltas == {"sparse": 28}


def test_choose_weights__counts_the_budget_before_and_after() -> None:
    model = maps()
    inject(model, Plan({"0 | 2 | 4": Sparse(0.1)}))
    before = count(model)
    assert before.deltas == {"sparse": round(0.1 * (60 + 80 + 24))}
    choose_weights(model, losses(model))
    assert count(model) == before


def test_choose_weights__leaves_base_flags_and_gradients_as_they_were() -> None:
    model = maps()
    inject(model, Plan({"0 | 2": Sparse(0.1)}, train=["4"]))
    base = {key: value.clone() for key, value in model.state_dict().items() if "sparse" not in key}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    choose_weights(model, losses(model))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(item.delta.is_active for item in attached(model))
    assert torch.equal(model(images()), maps()(images()))


def test_sparse__refuses_to_run_before_the_choice() -> None:
    model = maps()
    inject(model, Plan({"0": Sparse(0.1)}))
    with pytest.raises(PlanError, match=r"not chosen yet\. Call `vispeft\.choose_weights"):
        check(model, images())


def test_choose_weights__chooses_once() -> None:
    model = maps()
    inject(model, Plan({"0": Sparse(0.1)}))
    choose_weights(model, losses(model))
    with pytest.raises(PlanError, match="There is nothing to choose"):
        choose_weights(model, losses(model))


def test_choose_weights__chooses_for_one_method_at_a_time() -> None:
    model = maps()
    few, many = Sparse(0.1, images=2), Sparse(0.2, images=5)
    inject(model, Plan({"0": few, "2": many}))
    assert methods_to_choose(model) == [few, many]
    choose_weights(model, losses(model), many)
    assert methods_to_choose(model) == [few]


def test_choose_weights__refuses_losses_of_nothing() -> None:
    model, other = maps(), maps()
    inject(model, Plan({"0 | 2": Sparse(0.1)}))
    with pytest.raises(PlanError, match="`losses` must have one loss at least"):
        choose_weights(model, [])
    with pytest.raises(PlanError, match=r"do not depend on the weights of 2 deltas, such as `0\.sparse`"):
        choose_weights(model, losses(other))
    with pytest.raises(PlanError, match=r"do not depend on the weights of 2 deltas"):
        choose_weights(model, [torch.tensor(1.0)])
    with pytest.raises(PlanError, match="must be finite, but those of loss 1 are not"):
        choose_weights(model, (torch.inf * loss for loss in losses(model)))
    assert len(methods_to_choose(model)) == 1


@pytest.mark.parametrize("method", [Sparse(0.2), Sparse(0.4, rank=1)], ids=["entries", "products"])
def test_sparse__loads_from_its_file_without_data(method: Sparse, tmp_path: Path) -> None:
    model, fresh = maps(), maps()
    inject(model, Plan({"0 | 2.weight": method}))
    choose_weights(model, losses(model))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    save_adapter(model, tmp_path / "sparse.safetensors")
    load_adapter(fresh, tmp_path / "sparse.safetensors")
    assert torch.equal(fresh(images()), model(images()))
    assert [item.delta.method for item in attached(fresh)] == [item.delta.method for item in attached(model)]
    tensors = load_file(tmp_path / "sparse.safetensors")
    assert all(tensor.dtype == torch.int32 for name, tensor in tensors.items() if name.endswith("indices"))


@pytest.mark.parametrize("method", [Sparse(0.2), Sparse(0.4, rank=1)], ids=["entries", "products"])
def test_restore_choices__takes_a_checkpoint(method: Sparse) -> None:
    model, resumed = maps(), maps()
    for one in (model, resumed):
        inject(one, Plan({"0 | 2.weight": method}))
    choose_weights(model, losses(model))
    tensors = trained_tensors(model.train())
    restore_choices(resumed, tensors)
    restore_tensors(resumed.train(), tensors)
    assert not methods_to_choose(resumed)
    assert all(torch.equal(value, tensors[name]) for name, value in trained_tensors(resumed).items())


def test_choose_by_magnitude__fills_every_missing_choice() -> None:
    model = maps()
    inject(model, Plan({"0 | 2": Sparse(0.2), "4": Sparse(0.3, "gps")}))
    choose_by_magnitude(model)
    assert not methods_to_choose(model)
    assert count(model).deltas == {"sparse": 28 + 3 * 2}
    remove(model)
    assert torch.equal(model(images()), maps()(images()))


def test_sparse__checks_its_options() -> None:
    for options, message in (
        ({"budget": 0.0}, "`budget` must be above 0 and at most 1"),
        ({"rule": "random"}, "`rule` must be one of magnitude, gradient, fisher, gps"),
        ({"images": 0}, "`images` must be at least 1"),
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"rank": 2, "rule": "gps"}, "`rank` must be left out with `rule: gps`"),
    ):
        with pytest.raises(PlanError, match=message):
            Sparse(**options)
    with pytest.raises(PlanError, match="`chosen` must be at most 60, the numbers of this weight, but is 61"):
        inject(maps(), Plan({"0": Sparse(chosen=61)}))
    with pytest.raises(PlanError, match="`sparse` serves linear maps, convolutions and parameters"):
        inject(maps(), Plan({"1": Sparse()}))


def test_sparse__follows_the_precision_of_the_model() -> None:
    model = maps().float()
    inject(model, Plan({"0 | 2.weight": Sparse(0.2, "magnitude")}))
    halved = model.bfloat16()
    halved(images().bfloat16()).sum().backward()
    assert all(item.delta.update.values.grad.dtype == torch.bfloat16 for item in attached(halved))
    assert all(item.delta.update.indices.dtype == torch.int32 for item in attached(halved))


def test_sparse__compiles() -> None:
    model = maps().float()
    inject(model, Plan({"0 | 2.weight": Sparse(0.2, "magnitude")}))
    x = images().float()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
