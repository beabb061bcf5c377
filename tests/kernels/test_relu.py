"""ReLU that keeps signs for backward."""

import torch
from vispeft_kernels.relu import sign_keeping_relu


def test_sign_keeping_relu__has_outputs_and_gradients_of_relu() -> None:
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 2.0, float("inf")], requires_grad=True)
    grad = torch.arange(1.0, 7.0)
    y = sign_keeping_relu(x)
    assert torch.equal(y, x.relu())
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(x.relu(), x, grad)[0])


def test_sign_keeping_relu__keeps_one_byte_per_value() -> None:
    kept: list[torch.Tensor] = []
    x = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        sign_keeping_relu(x)
    assert [tensor.dtype for tensor in kept] == [torch.bool]
