"""Rotations by OFT and BOFT: what they keep, their size, the authors' formula, and refusals."""

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import BOFT, OFT, Method, Plan, RepAdapter, count, inject, merge

METHODS = [OFT(4), BOFT(4, 2), BOFT(2, 3)]


def model_of(inputs: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 6)).double()


def shake(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()


@pytest.mark.parametrize("method", METHODS, ids=["oft", "boft two", "boft three"])
def test_rotation__keeps_lengths_of_rows_and_angles_between_them(method: Method) -> None:
    model = model_of()
    before = model[0].weight.detach().clone()
    inject(model, Plan({"0": method}))
    shake(model)
    merge(model)
    after = model[0].weight.detach()
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after @ after.T, before @ before.T)


def test_rotation__of_enough_butterfly_factors_connects_every_input_with_every_other() -> None:
    def connections(method: Method) -> Tensor:
        model = model_of()
        model[0] = nn.Linear(16, 16, bias=False).double()
        nn.init.eye_(model[0].weight)
        inject(model, Plan({"0": method}))
        shake(model)
        merge(model)
        return model[0].weight.detach() != 0

    assert connections(BOFT(2, 4)).all()
    assert connections(BOFT(4, 3)).all()
    assert connections(BOFT(4, 2)).sum(1).tolist() == [8] * 16
    assert connections(OFT(4)).sum(1).tolist() == [4] * 16


@pytest.mark.parametrize(("block", "factors"), [(2, 1), (2, 4), (4, 3), (8, 2)])
def test_rotation__has_as_many_parameters_as_the_paper(block: int, factors: int) -> None:
    """Half of `(b - 1) d m`, section 4 of BOFT."""
    model = model_of()
    inject(model, Plan({"0": BOFT(block, factors)}))
    assert count(model).trainable == (block - 1) * 16 * factors // 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rotation__equals_the_peft_library_s() -> None:
    """With one factor: without a CUDA compiler the library reduces more of them to one."""
    peft = pytest.importorskip("peft", reason="the peft library is an extra")
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["0"])
    ours, theirs = model_of(), peft.get_peft_model(model_of(), config)
    inject(ours, Plan({"0": BOFT(4, 1)}))
    shake(ours)
    rows, columns = torch.triu_indices(4, 4, 1)
    with torch.no_grad():
        # it takes half of the difference to the transposed, and the Cayley transform with the other sign
        given = theirs.base_model.model[0].boft_R["default"]
        given.zero_()[0, :, rows, columns] = -2 * ours[0].boft.rotations.q.to(given.dtype)
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(theirs(x).double(), ours(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [*METHODS, RepAdapter()], ids=lambda method: repr(method))
def test_a_batch_without_rows_stays_one(method: Method) -> None:
    model = model_of()
    inject(model, Plan({"0": method}))
    assert model(torch.zeros(0, 16, dtype=torch.float64)).shape == (0, 6)


def test_rotation__refuses_blocks_that_do_not_fit() -> None:
    for method, message in (
        (OFT(5), r"`block` must divide the site's 16 inputs, but is 5"),
        (BOFT(4, 4), r"`block \* 2 \*\* \(factors - 1\)` must divide the site's 16 inputs, but is 32"),
    ):
        with pytest.raises(PlanError, match=message):
            inject(model_of(), Plan({"0": method}))
    with pytest.raises(PlanError, match="`block` must be even"):
        BOFT(3)
    with pytest.raises(PlanError, match=r"`boft` serves parameters \[out, in, \.\.\.\], but this one is \[6\]"):
        inject(model_of(), Plan({"0.bias": BOFT(2)}))
