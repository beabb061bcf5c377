"""Ladder side tuning: a small network beside the frozen blocks, through which alone gradients flow.

LST: Sung et al. 2022, https://arxiv.org/abs/2206.06522. For dense predictions: E3VA, Yin et al. 2023,
https://arxiv.org/abs/2306.09729, and LoSA, Mercea et al. 2024, https://arxiv.org/abs/2402.02887.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vispeft_kernels.adapter import ACTIVATIONS

from vispeft.errors import PlanError
from vispeft.peft.methods.adapter import Bottleneck
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, one_of, reference_tensor, trainable, widths
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.layout import ChannelDim
from vispeft.peft.methods.tensor_table import TensorTable

OUTPUTS = ("last", "all")


@dataclass(frozen=True)
class Ladder(Method):
    """`y + up(h)` at the last site, with h from the outputs y_i of all sites; `up` starts at zero.

    `h_0 = down_0(y_0)`, and `h_i = g_i down_i(y_i) + (1 - g_i) (h_{i-1} + mix_i(h_{i-1}))`. The y_i are detached. One
    gate a site, `g_i = sigmoid(a_i)`, starts at 0.5 (LST, section 3.2, without its temperature). `mix_i` is the channel
    mixer of LoSA, `up(act(down(h)))` with its own maps; it starts at zero. Where the map of a site has another size
    than that of the site before, as in the next stage of a hierarchical encoder, `h_{i-1}` is averaged to it.

    width: features of h
    activation: gelu (exact), relu or silu
    outputs: "last", or "all": each site returns `y_i + up_i(h_i)`, for modules whose outputs a decoder alone reads
    """

    name: ClassVar[str] = "ladder"
    merges: ClassVar[bool] = False
    width: int
    activation: str = "gelu"
    outputs: str = "last"

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("outputs", self.outputs, OUTPUTS)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for any module whose output width is known."""
        if sum(site.module is module for site in context.sites) > 1:
            raise PlanError("A ladder runs through a module once, but the plan names this one twice. Name it once.")
        return LadderDelta(self, module, context)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: a ladder reads outputs."""
        raise PlanError(
            "`ladder` serves modules, but this is a parameter. Name the blocks whose outputs it should read."
        )


class LadderDelta(Delta):
    """Maps of the side network: `down`, but for the first site `gate` and `mix`, and `up` where the output changes."""

    def __init__(self, method: Ladder, base: nn.Module, context: Context) -> None:
        super().__init__(method)
        size, like = widths(base), reference_tensor(base)
        self.site, self.index = context.site.name, context.index
        self.channel_dim = ChannelDim(size)
        self.activation = method.activation
        self.states = context.shared(SideStates)
        self.down_w, self.down_b = trainable(method.width, size.outputs, like=like), trainable(method.width, like=like)
        nn.init.kaiming_uniform_(self.down_w, a=math.sqrt(5))
        self.gate = None if context.is_first else trainable(1, like=like)
        self.mix = None if context.is_first else Bottleneck(method.width, method.width, method.width, like)
        self.is_last, adds = context.is_last, context.is_last or method.outputs == "all"
        self.up_w = trainable(size.outputs, method.width, like=like) if adds else None
        self.up_b = trainable(size.outputs, like=like) if adds else None

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return `y + up(h)` at the last site or at all, y elsewhere. y: [..., C] or [B, C, H, W]."""
        state = self.states.before(self, x).with_output(self, y)
        self.states.running = SideState() if self.is_last else state
        if self.up_w is None or self.up_b is None:
            return y
        hidden = state.hidden_after_outputs()
        assert hidden is not None  # one output at least
        update = F.linear(hidden, self.up_w.to(hidden.dtype), self.up_b.to(hidden.dtype))
        return y + update.movedim(-1, self.channel_dim.of(y)).to(y.dtype)

    def next_hidden(self, hidden: Tensor | None, y: Tensor) -> Tensor:
        """Return h [..., width] of this site, from that of the site before and this site's output."""
        y = y.movedim(self.channel_dim.of(y), -1)
        projected = F.linear(y, self.down_w.to(y.dtype), self.down_b.to(y.dtype))
        if hidden is None or self.gate is None or self.mix is None:
            return projected
        if hidden.ndim == 4 and hidden.shape != projected.shape:
            size = projected.shape[1], projected.shape[2]
            hidden = F.adaptive_avg_pool2d(hidden.movedim(-1, 1), size).movedim(1, -1)
        if hidden.shape != projected.shape:
            raise PlanError(
                f"`{self.site}` has outputs of {list(projected.shape[:-1])} positions, but the site of the ladder "
                f"before it has {list(hidden.shape[:-1])}. Name the blocks of one stage."
            )
        hidden = hidden.to(projected.dtype)
        mixed = self.mix(hidden, hidden, self.activation, 1.0)
        return torch.lerp(mixed, projected, self.gate.sigmoid().to(projected.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: a ladder reads several modules."""
        return


@dataclass(frozen=True)
class Output:
    """Detached output of a block, for a rung of the ladder. version: of the tensor, which must not change"""

    delta: LadderDelta
    y: Tensor
    version: int


@dataclass(frozen=True)
class SideState:
    """State of the side network after some sites of one forward pass.

    With gradients it is the outputs of the blocks, and a site whose output changes runs the whole side network until
    there. The graph is then in one place, and a block that backward recomputes needs no other. Without gradients it is
    h alone.

    num_sites: sites that have run
    hidden: h [..., width] of those without an entry in `outputs`; None for none
    """

    num_sites: int = 0
    hidden: Tensor | None = None
    outputs: tuple[Output, ...] = ()

    def with_output(self, delta: LadderDelta, y: Tensor) -> SideState:
        """Return the state after one more site."""
        y = y.detach()
        if torch.is_grad_enabled() or self.outputs:
            outputs = (*self.outputs, Output(delta, y, y._version))
            return SideState(self.num_sites + 1, self.hidden, outputs)
        return SideState(self.num_sites + 1, delta.next_hidden(self.hidden, y))

    def hidden_after_outputs(self) -> Tensor | None:
        """Return h [..., width] of the last site."""
        hidden = self.hidden
        for output in self.outputs:
            if output.y._version != output.version:
                raise PlanError(
                    f"The output of `{output.delta.site}` was changed in place after the block, so that the ladder "
                    "cannot read it. Name modules inside the blocks."
                )
            hidden = output.delta.next_hidden(hidden, output.y)
        return hidden


class SideStates:
    """States of the side network in the running forward pass, and in those whose blocks backward may recompute.

    The running one ends at the last site. That of a pass that failed remains until the next pass, as does that of the
    first blocks where backward recomputed them: one output of each block at most, without a graph. The others end with
    the inputs of their blocks, which only activation checkpointing keeps.
    """

    def __init__(self) -> None:
        self.running = SideState()
        self._before: TensorTable[SideState] = TensorTable()

    def before(self, delta: LadderDelta, x: Tensor) -> SideState:
        """Return the state before a site, which gets x now. PlanError where the sites before it have not run."""
        if delta.index == 0:
            return SideState()
        if not torch.is_grad_enabled():
            return self._checked(delta, self.running)
        # activation checkpointing of this package calls a layer with a new view of its input
        source = x if x._base is None else x._base
        found = self._before.get(source)
        if found is not None and found.num_sites == delta.index:
            return found
        self._before[source] = self._checked(delta, self.running)
        return self.running

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # a copied or unpickled model has run no block yet
        return type(self), ()

    @staticmethod
    def _checked(delta: LadderDelta, state: SideState) -> SideState:
        if state.num_sites != delta.index:
            raise PlanError(
                f"`{delta.site}` is number {delta.index + 1} of the ladder's sites, but {state.num_sites} of them ran "
                "before it. Name blocks that run once each, in the model's order. Activation checkpointing needs "
                "`use_reentrant=False`, without which torch loses the gradients of a network beside the blocks."
            )
        return state
