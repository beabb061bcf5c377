"""Prompts: tokens of class names."""

from __future__ import annotations

from typing import Any

import pytest

from vispeft.errors import ConfigError
from vispeft.models.wrappers.sam3.prompts import PromptWriter


def tokenizer(texts: list[str], *, padding: str, max_length: int) -> dict[str, Any]:
    """A token for each letter, padded with -1."""
    assert padding == "max_length"
    rows = [[ord(letter) for letter in text] for text in texts]
    padded = [row + [-1] * (max_length - len(row)) for row in rows]
    return {"input_ids": padded, "attention_mask": [[int(token >= 0) for token in row] for row in padded]}


def writer(**texts: str) -> PromptWriter:
    return PromptWriter(tokenizer, length=4, texts=texts)


def test_prompts__are_the_names_or_their_texts() -> None:
    prompts = writer(ba="xyz")(["a", "ba"])
    assert prompts.ids.tolist() == [[97, -1, -1, -1], [120, 121, 122, -1]]
    assert prompts.mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_prompts__refuse_long_texts_and_unknown_classes() -> None:
    with pytest.raises(
        ConfigError, match=r"The prompt of class 'abcde' must have at most 4 tokens, but has 5\. Give a"
    ):
        writer()(["a", "abcde"])
    assert writer(abcde="b")(["a", "abcde"]).mask.sum() == 2
    with pytest.raises(
        ConfigError, match=r"`options\.prompts` names no class of the data: 'figs'\. Did you mean `fig`"
    ):
        writer(figs="b")(["fig"])
