"""Visual prompt tuning (Jia et al. 2022, https://arxiv.org/abs/2203.12119): trained tokens around frozen blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import AroundDelta, Method, WeightDelta, at_least, reference_tensor, trainable, widths
from vispeft.peft.methods.context import Context


@dataclass(frozen=True)
class TokenMethod(Method):
    """A method that adds trained tokens to those of a module.

    serves: kind of the modules, in the plural
    tokens: number of trained tokens
    """

    is_identity_at_start: ClassVar[bool] = False
    serves: ClassVar[str]
    tokens: int

    def __post_init__(self) -> None:
        at_least("tokens", self.tokens, 1)


@dataclass(frozen=True)
class VPT(TokenMethod):
    """Trained tokens before the tokens [B, N, C] of the blocks of a plain vision transformer, taken off afterwards.

    Deep (equation 7): each block gets prompts of its own, and their outputs are dropped. Shallow (equations 4 and 5):
    the first block gets the prompts, and the last block's output is without them.

    The prompts stand before all other tokens, class token included, so that the patches stay the last tokens. Attention
    without positions of its own gives the same in the paper's order, which has the class token first; and code that
    counts the tokens before the patches (map sizes, rotary positions of transformers' DINOv3) counts the prompts among
    them. Rotary positions that a block gets as `rope` (timm's EVA and DINOv3) are extended, if `deep`. Not served:
    other attention with positions for a fixed number of tokens (relative positions of BEiT), which fails on more;
    blocks that read the class token by its index give wrong results.

    tokens: prompts of a block
    deep: prompts at every site; otherwise at the first alone
    """

    name: ClassVar[str] = "vpt"
    merges: ClassVar[bool] = False
    serves: ClassVar[str] = "blocks"
    deep: bool = True

    def for_module(self, module: nn.Module, context: Context) -> Prompts | None:
        """Return the prompts of a block; None for a shallow plan's blocks between the first and the last."""
        _check_block(module)
        if self.deep:
            return Prompts(self, module, SequenceLength(), adds=True, removes=True)
        if len({site.name.rpartition(".")[0] for site in context.sites}) > 1:
            raise PlanError(
                "Shallow prompts pass through the blocks of one list, but the plan's sites are in several. Name the "
                "blocks of one list, such as `blocks.*`, or set `deep` to true."
            )
        if context.is_first or context.is_last:
            length = context.shared(SequenceLength)
            return Prompts(self, module, length, adds=context.is_first, removes=context.is_last)
        return None

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: prompts are added to inputs."""
        raise PlanError("`vpt` serves blocks, but this is a parameter. Name the block, such as `blocks.0`.")


def with_rotary_positions(kwargs: dict[str, Any], given: Tensor, x: Tensor) -> dict[str, Any]:
    """Return a module's arguments with rotary positions also for the tokens that x [B, T + N, C] has before `given`.

    The new tokens have no place: their rotation is by no angle. In timm `rope` [..., N, 2 D] has the sines of the last
    N tokens, then their cosines; tokens before these, such as the class token, are not rotated.
    """
    rope = kwargs.get("rope")
    if not isinstance(rope, Tensor) or x.ndim != 3 or given.ndim != 3 or x.shape[1] <= given.shape[1]:
        return kwargs
    sines = rope.new_zeros(*rope.shape[:-2], x.shape[1] - given.shape[1], rope.shape[-1] // 2)
    return {**kwargs, "rope": torch.cat((torch.cat((sines, torch.ones_like(sines)), dim=-1), rope), dim=-2)}


class SequenceLength:
    """Number of tokens to which prompts were added last, for the block that removes them."""

    def __init__(self) -> None:
        self.value = 0

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # a copied model has seen no tokens yet
        return type(self), ()


class Prompts(AroundDelta):
    """The trained tokens `prompts` [T, C] of a block; None at the last block of a shallow plan, which removes them."""

    def __init__(
        self, method: TokenMethod, block: nn.Module, length: SequenceLength, *, adds: bool, removes: bool
    ) -> None:
        super().__init__(method)
        self.name, self.serves = method.name, method.serves
        self.length = length
        self.num_prompts, self.removes = method.tokens, removes
        width = widths(block).inputs
        self.prompts = _new_prompts(method.tokens, width, reference_tensor(block)) if adds else None

    def before(self, x: Tensor) -> Tensor:
        """Return the prompts followed by the tokens x [B, N, C]."""
        if self.prompts is None:
            return x
        width = self.prompts.shape[1]
        if x.ndim != 3 or x.shape[2] != width:
            raise PlanError(
                f"`{self.name}` needs a module that gets tokens [B, N, {width}], but this one gets {list(x.shape)}. "
                f"Name the {self.serves} of a plain vision transformer."
            )
        self.length.value = x.shape[1]
        return torch.cat([self.prompts.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return the block's output y without the prompts. x, y: [B, T + N, C]."""
        if not self.removes:
            return y
        if y.shape != x.shape:
            raise PlanError(
                f"`{self.name}` needs a module whose output has the shape of its input, but this one makes "
                f"{list(y.shape)} from {list(x.shape)}. Name {self.serves} that keep their tokens; of methods that add "
                "tokens at one site, keep one."
            )
        if x.shape[1] != self.num_prompts + self.length.value:
            raise PlanError(
                f"The first site of `vpt` added {self.num_prompts} prompts to {self.length.value} tokens, but its last "
                f"one gets {x.shape[1]} tokens: the model adds or drops some in between. Set `deep` to true, or name "
                "blocks between which it does not."
            )
        # contiguous, as the block's output is without prompts, for callers that `view` it
        return y[:, self.num_prompts :].contiguous()

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: tokens are no part of a weight."""
        return


def _new_prompts(tokens: int, width: int, like: Tensor) -> nn.Parameter:
    """Return prompts [T, C], uniform in +-sqrt(6 / (C + C)).

    The paper's bound is Xavier's for the patch embedding, sqrt(6 / (3 h w + C)) with patches of h x w pixels. A block
    does not know them, so C stands for 3 h w: the two are equal in ViT-B/16.
    """
    prompts = trainable(tokens, width, like=like)
    bound = math.sqrt(6 / (width + width))
    nn.init.uniform_(prompts, -bound, bound)
    return prompts


def _check_block(module: nn.Module) -> None:
    """Refuse modules in which prompts would do nothing or would join another dimension than that of the tokens."""
    if isinstance(module, nn.MultiheadAttention) or not list(module.children()):
        raise PlanError(
            f"`vpt` serves blocks, in which tokens attend to the prompts, but this is a {type(module).__name__}. Name "
            "the block that it is in."
        )
    if any(isinstance(part, nn.MultiheadAttention) and not part.batch_first for part in module.modules()):
        raise PlanError(
            "`vpt` serves blocks that get tokens [B, N, C], but the attention of this one takes [N, B, C]. Build the "
            "model with `batch_first=True`."
        )
