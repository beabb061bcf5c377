"""Every method under torch.compile: no break of the graph, and the gradients of a model that is not compiled."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from vispeft.peft import METHODS, inject, train_mode

# methods that break the graph, with the reason
BREAKS = {
    "conv_lora": "the experts that run depend on the images; all of them would cost many times as much",
    "ladder": "the state beside the blocks is found by the tensor that it belongs to, in a table of weak references",
}


def gradients(run: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs and the gradients of all that is trained, in train mode without randomness of its own."""
    model.zero_grad()
    torch.manual_seed(3)
    output = run(images)
    output.square().sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def first_cases(cases: list) -> dict[str, object]:
    """Return the first case of each method."""
    found: dict[str, object] = {}
    for case in cases:
        methods = case.methods if isinstance(case.methods, tuple) else (case.methods,)
        for method in methods:
            found.setdefault(method.name, case)
    return found


@pytest.mark.parametrize("method", sorted(METHODS))
def test_compile__gives_the_gradients_of_the_method_without_a_break(
    method: str, cases, build: Callable[[], nn.Module], images: Tensor, shake: Callable[[nn.Module], None]
) -> None:
    model = build()
    inject(model, first_cases(cases)[method].plan)
    shake(model)
    train_mode(model)
    output, grads = gradients(model, model, images)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=method not in BREAKS)
    compiled_output, compiled_grads = gradients(compiled, model, images)
    torch.testing.assert_close(compiled_output, output, rtol=1e-4, atol=1e-5)
    assert compiled_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(compiled_grads[name], grad, rtol=1e-4, atol=1e-5, msg=name)
    assert (counter.frame_count > 1) == (method in BREAKS)
