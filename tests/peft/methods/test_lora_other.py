"""LoRA on convolutions of other dimensions, transposed ones and embeddings, against the changed weight itself."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import AdaLoRA, DoRA, LoHa, LoRA, Method, Plan, count, inject, load_adapter, merge, save_adapter
from vispeft.peft.inject import attached
from vispeft.peft.methods.base_modules import LINEAR_IN_WEIGHT_FORWARDS

LINE, IMAGE, VOLUME = (2, 4, 9), (2, 4, 7, 6), (2, 4, 5, 4, 6)

CONVS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), LINE),
    "1d circular": (lambda: nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), LINE),
    "2d depth-wise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "2d depth-wise, two filters": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE),
    "3d": (lambda: nn.Conv3d(4, 6, (2, 3, 1), dilation=(1, 1, 2)), VOLUME),
    "3d replicate": (lambda: nn.Conv3d(4, 6, 3, padding=(0, 1, 2), padding_mode="replicate", groups=2), VOLUME),
}
TRANSPOSED = {
    "1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), LINE),
    "2d": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), IMAGE),
    "2d with margins": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2), IMAGE),
    "3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=(1, 2, 1), bias=False), VOLUME),
}
SITES = {
    **{f"conv {name}": entry for name, entry in CONVS.items()},
    **{f"transposed conv {name}": entry for name, entry in TRANSPOSED.items()},
}


def model_of(make: Callable[[], nn.Module], method: Method) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(make()).double()
    inject(model, Plan({"0": method}))
    return model


def shake(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()


def changed_weight(model: nn.Module, scale: float) -> Tensor:
    """The weight with the update written out entry by entry."""
    weight, own = model[0].weight.detach(), dict(attached(model)[0].delta.named_parameters())
    if isinstance(model[0], nn.modules.conv._ConvTransposeNd):
        product = torch.einsum("ri,ro->io", own["a"], own["b"].flatten(1))
    else:
        product = torch.einsum("or,ri->oi", own["b"].flatten(1), own["a"].flatten(1))
    return weight + scale * product.view(weight.shape)


@pytest.mark.parametrize(("make", "shape"), SITES.values(), ids=SITES)
def test_lora__is_the_map_with_the_changed_weight(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = model_of(make, LoRA(3, 6)), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain = make().double()
    plain.load_state_dict({key: value for key, value in model[0].state_dict().items() if "lora" not in key})
    assert torch.equal(model(x), plain(x))
    shake(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weight = changed_weight(model, 2.0)
    wanted = torch.func.functional_call(plain, {"weight": weight}, x)
    torch.testing.assert_close(model(x), wanted)
    assert (wanted - plain(x)).abs().max() > 0.1
    ours = torch.autograd.grad(model(x).square().sum(), [x, *trained])
    theirs = torch.autograd.grad(wanted.square().sum(), [x, *trained])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    y = model(x)
    merge(model)
    torch.testing.assert_close(model[0].weight, weight)
    torch.testing.assert_close(model(x), y)


def test_lora__follows_the_output_size_that_a_caller_chooses() -> None:
    model, x = model_of(TRANSPOSED["2d"][0], LoRA(2)), torch.randn(IMAGE, dtype=torch.float64)
    shake(model)
    y = model[0](x, output_size=(15, 13))
    assert y.shape[2:] == (15, 13)
    torch.testing.assert_close(y, F.conv_transpose2d(x, changed_weight(model, 1.0), model[0].bias, 2, 0, 1))


def test_lora__of_an_embedding_changes_rows_but_not_that_of_padding(tmp_path) -> None:
    def make() -> nn.Module:
        return nn.Embedding(7, 4, padding_idx=2)

    model, fresh, x = model_of(make, LoRA(2, 6)), nn.Sequential(nn.Embedding(7, 4, padding_idx=2)).double(), None
    x = torch.tensor([[0, 2, 6], [2, 2, 5]])
    fresh[0].weight = nn.Parameter(model[0].weight.detach().clone())
    assert torch.equal(model(x), fresh(x))
    assert count(model).trainable == 2 * (7 + 4)
    delta = attached(model)[0].delta
    optimizer = torch.optim.SGD([delta.a, delta.b], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()
    assert not delta.b[[1, 2, 3, 4]].any()
    assert delta.b[[0, 5, 6]].all()
    torch.testing.assert_close(model(x), changed_weight(model, 3.0)[x])
    save_adapter(model, tmp_path / "lora.safetensors")
    y = model(x)
    load_adapter(fresh, tmp_path / "lora.safetensors")
    assert torch.equal(fresh(x), y)
    merge(model)
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("method", [DoRA(2), AdaLoRA(2), LoHa(2)], ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["1d", "3d"])
def test_other_methods__serve_convolutions_of_other_dimensions(method: Method, kind: str) -> None:
    make, shape = CONVS[kind]
    model, x = model_of(make, method), torch.randn(shape, dtype=torch.float64)
    before = model(x)
    shake(model)
    y = model(x)
    assert (y - before).abs().max() > 1e-3
    merge(model)
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("name", sorted(LINEAR_IN_WEIGHT_FORWARDS))
def test_merge__equals_unmerged_for_every_forward_that_is_known(name: str) -> None:
    sites = {type(entry[0]()): entry for entry in SITES.values()}
    kind = getattr(nn, name.rpartition(".")[2])
    assert f"{kind.__module__}.{kind.__qualname__}" == name
    assert "forward" in vars(kind)
    if kind is nn.Embedding:
        model, x = model_of(lambda: nn.Embedding(5, 3), LoRA(2)), torch.arange(5)
    else:
        make, shape = sites[kind]
        model, x = model_of(make, LoRA(2)), torch.randn(shape, dtype=torch.float64)
    shake(model)
    y = model(x)
    merge(model)
    torch.testing.assert_close(model(x), y)


def test_lora__has_its_parameters_by_formula() -> None:
    for make, parameters in (
        (CONVS["1d"][0], 2 * (4 * 3 + 6)),
        (CONVS["2d depth-wise, two filters"][0], 2 * (9 + 8)),
        (CONVS["3d"][0], 2 * (4 * 6 + 6)),
        (TRANSPOSED["2d with margins"][0], 2 * (4 + 3 * 9)),
    ):
        assert count(model_of(make, LoRA(2))).trainable == parameters


def test_lora__refuses_what_these_sites_do_not_have() -> None:
    transposed, embedding = TRANSPOSED["2d"][0], lambda: nn.Embedding(5, 3)
    for make, method, message in (
        (transposed, LoRA(2, parts="q"), "`parts` must be empty on a ConvTranspose2d"),
        (transposed, LoRA(2, start="pissa"), "`start` must be zero on a ConvTranspose2d, but is 'pissa'"),
        (transposed, LoRA(25), "`rank` must be at most 24"),
        (transposed, DoRA(2), "`dora` serves linear maps, convolutions and parameters, but this is a"),
        (embedding, LoRA(2, dropout=0.1), "`dropout` must be 0 on an Embedding"),
        (lambda: nn.Embedding(5, 3, max_norm=1.0), LoRA(2), "An Embedding with `max_norm` changes its own weight"),
        (lambda: nn.LayerNorm(3), LoRA(2), "embeddings and parameters, but this is a "),
    ):
        with pytest.raises(PlanError, match=message):
            model_of(make, method)
