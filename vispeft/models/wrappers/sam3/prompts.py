"""Class names as text prompts: their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispeft.errors import ConfigError
from vispeft.io.names import did_you_mean


@dataclass(frozen=True)
class Prompts:
    """Tokens of K prompts. ids: [K, T] int64; mask: [K, T] int64, 0 for padding."""

    ids: Tensor
    mask: Tensor


class PromptWriter:
    """Prompts of class names by the tokenizer of a model.

    length: tokens T of a prompt, with start and end
    texts: prompts of the classes whose name is not a good one, by class name
    """

    def __init__(self, tokenizer: Any, *, length: int, texts: Mapping[str, str]) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.texts = dict(texts)

    def __call__(self, class_names: Sequence[str]) -> Prompts:
        """Return the prompts of classes. Raises ConfigError for a text that is too long, and for an unknown class."""
        for name in self.texts:
            if name not in class_names:
                raise ConfigError(
                    f"`options.prompts` names no class of the data: {name!r}.{did_you_mean(name, class_names)}"
                )
        texts = [self.texts.get(name, name) for name in class_names]
        tokens = self.tokenizer(texts, padding="max_length", max_length=self.length)
        for name, ids in zip(class_names, tokens["input_ids"], strict=True):
            if len(ids) > self.length:
                raise ConfigError(
                    f"The prompt of class {name!r} must have at most {self.length} tokens, but has {len(ids)}. Give a "
                    "shorter one in `options.prompts`."
                )
        return Prompts(torch.tensor(tokens["input_ids"]), torch.tensor(tokens["attention_mask"]))
