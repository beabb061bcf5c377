"""Nearest names."""

from __future__ import annotations

from vispeft.io.names import did_you_mean, nearest_names


def test_did_you_mean__names_the_nearest_with_its_prefix() -> None:
    assert did_you_mean("lroa", ["dora", "lora", "ssf"]) == " Did you mean `lora`?"
    assert did_you_mean("rnak", ["rank"], prefix="a.b.") == " Did you mean `a.b.rank`?"


def test_did_you_mean__is_empty_where_none_is_near_unless_one_is_wanted() -> None:
    assert did_you_mean("xyz", ["lora"]) == ""
    assert did_you_mean("xyz", ["lora"], cutoff=0.0) == " Did you mean `lora`?"
    assert did_you_mean("xyz", []) == ""


def test_nearest_names__are_ordered_and_at_most_so_many() -> None:
    assert nearest_names("blocks.1", ["blocks.12", "head", "blocks.2"], at_most=2) == ["blocks.12", "blocks.2"]
