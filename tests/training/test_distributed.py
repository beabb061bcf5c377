"""What processes exchange: options of DDP from the gradients that a loss gives."""

import torch
from torch import Tensor, nn

from vispeft.training.distributed import GradientUse, ddp_options, gradient_use


class TwoMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor, *, uses_second: bool) -> Tensor:
        y = self.norm(torch.dropout(self.first(x), 0.5, train=True))
        return (self.second(y) if uses_second else y).sum()


def _use(model: TwoMaps, with_targets: bool, without_targets: bool) -> GradientUse:
    x = torch.randn(4, 3)
    return gradient_use(
        model, lambda: model(x, uses_second=with_targets), lambda: model(x, uses_second=without_targets)
    )


def test_gradient_use__names_what_lacks_a_gradient() -> None:
    use = _use(TwoMaps(), True, False)
    assert use.lacking == frozenset()
    assert use.lacking_without_targets == {"second.weight", "second.bias"}
    assert use.varies
    assert not _use(TwoMaps(), False, False).varies


def test_gradient_use__leaves_model_and_generators_alone() -> None:
    model = TwoMaps()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    x = torch.ones(4, 3)
    gradient_use(model, lambda: model(x, uses_second=True), lambda: model(x, uses_second=True))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ddp_options__search_only_where_the_batch_decides() -> None:
    model = TwoMaps()
    unknown, varying = ddp_options(model, None, True), ddp_options(model, _use(model, True, False), False)
    assert unknown["find_unused_parameters"]
    assert not unknown["static_graph"]
    assert unknown["broadcast_buffers"]
    assert varying["find_unused_parameters"]
    assert not varying["static_graph"]
    same, none = (ddp_options(model, _use(model, used, used), False) for used in (False, True))
    assert same["static_graph"]
    assert not same["find_unused_parameters"]
    assert not none["static_graph"]
    assert not none["find_unused_parameters"]
    assert not none["broadcast_buffers"]


def test_ddp_options__one_bucket_for_few_parameters() -> None:
    large = nn.Linear(2000, 8000, bias=False)  # 61 MB
    assert ddp_options(large, None, False)["bucket_cap_mb"] == 25
    assert ddp_options(nn.Linear(1000, 1000, bias=False), None, False)["bucket_cap_mb"] == 4
    assert ddp_options(large.requires_grad_(False), None, False)["bucket_cap_mb"] == 1
