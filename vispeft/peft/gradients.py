"""Parameters that the outputs of a model depend on with a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.peft.outputs import tensors_of


@contextmanager
def graph_alone() -> Iterator[None]:
    """Build the graph of autograd in the block, but keep no tensors for a backward pass, which is impossible then."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda kept: kept),
    ):
        yield


def parameters_behind(output: Any) -> set[Tensor]:
    """Return the parameters in the graph of a model's output, of any form. Reentrant checkpoints hide theirs."""
    nodes = [tensor.grad_fn for tensor in tensors_of(output) if tensor.grad_fn is not None]
    seen, found = set(nodes), set()
    while nodes:
        node = nodes.pop()
        # a leaf of the graph has the parameter that it adds gradients to
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(variable)
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        nodes += following
    return found


def parameters_with_gradient(output: Any, parameters: Sequence[nn.Parameter]) -> set[Tensor]:
    """Return those of the parameters that get a gradient from a backward pass of the sum of a model's outputs.

    All gradients are afterwards what they were.
    """
    total = [tensor.sum() for tensor in tensors_of(output) if tensor.requires_grad and not tensor.is_complex()]
    leaves = {*parameters, *parameters_behind(output)}
    before = {leaf: leaf.grad for leaf in leaves}
    try:
        for leaf in leaves:
            leaf.grad = None
        if total:
            torch.autograd.backward(total)
        return {parameter for parameter in parameters if parameter.grad is not None}
    finally:
        for leaf, grad in before.items():
            leaf.grad = grad
