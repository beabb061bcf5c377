"""Contract of methods that change single weights, which scores of data choose before training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class Scored(ABC):
    """A method whose deltas change weights that scores choose. A method inherits this beside `Method`.

    `peft/choice.py` computes the gradients and calls the functions of this class. A delta whose weights are not chosen
    yet has as many parameters as the budget allots to its site, and refuses to run.
    """

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Return the number of training images whose gradients make the scores."""

    @property
    @abstractmethod
    def is_chosen(self) -> bool:
        """Return True for the method of a delta whose weights are chosen."""

    @abstractmethod
    def accumulate(self, score: Tensor, gradient: Tensor) -> None:
        """Add the gradient of one loss to the score of a weight, in place. Both have the weight's shape, in float32."""

    @abstractmethod
    def choose(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return the chosen weights of each site of this method, as ascending indices of the flat weight.

        scores: by site, each of the weight's shape; their order counts, not their scale
        """

    @abstractmethod
    def set_choice(self, delta: nn.Module, weight: Tensor, indices: Tensor) -> None:
        """Let a delta of this method change the chosen weights, in place.

        weight: of the delta's site
        indices: of the flat weight, as `choose` returns them
        """

    @abstractmethod
    def restore_choice(self, delta: nn.Module, weight: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Give a delta of this method tensors of the sizes of saved ones, in place.

        tensors: those of a delta whose weights were chosen, by their names in it; without them nothing changes
        """
