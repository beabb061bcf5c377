"""Prefix tuning (Li and Liang 2021, https://arxiv.org/abs/2101.00190): trained keys and values of an attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import WeightDelta
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.prompt import Prompts, SequenceLength, TokenMethod


@dataclass(frozen=True)
class Prefix(TokenMethod):
    """`Attention(Q, [P W_k + c_k, K], [P W_v + c_v, V])`: more keys and values from trained tokens P at each attention.

    P stands before the attention's input x, and the outputs of P are dropped. Each query of x attends to the keys and
    values of P and of x, and the queries of P change no other output. The paper trains keys and values freely. Here one
    token gives both by the frozen maps, at half the parameters. This serves any module that computes keys and values
    from its input, also by one fused map. Unlike prompts of `vpt`, P passes neither the norm nor the MLP of the block.

    Not served: attention that `vpt` does not serve, and nn.MultiheadAttention, whose keys are an input of their own.

    tokens: keys and values of each attention
    """

    name: ClassVar[str] = "prefix"
    merges: ClassVar[bool] = False
    serves: ClassVar[str] = "attention modules"

    def for_module(self, module: nn.Module, context: Context) -> Prompts:
        """Return the tokens of an attention module."""
        if isinstance(module, nn.MultiheadAttention) or not list(module.children()):
            raise PlanError(
                "`prefix` serves self-attention modules that map their own input to queries, keys and values, but this "
                f"is a {type(module).__name__}. Name such a module, for example `blocks.*.attn`."
            )
        return Prompts(self, module, SequenceLength(), adds=True, removes=True)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: keys and values are added to an attention's own."""
        raise PlanError(
            "`prefix` serves attention modules, but this is a parameter. Name the module, as `blocks.0.attn`."
        )
