"""Places of downloads, and offline mode."""

import os
from pathlib import Path

import pytest

from vispeft.io.cache import cache_dir, hub_cache_dir, offline_variable, request_offline_libraries


def test_cache_dir__goes_by_the_environment() -> None:
    assert cache_dir({"VISPEFT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/vispeft")
    assert cache_dir({}) == Path.home() / ".cache" / "vispeft"


def test_hub_cache_dir__is_that_of_the_library() -> None:
    assert hub_cache_dir({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache_dir({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"VISPEFT_OFFLINE": "0"}, None),
        ({"VISPEFT_OFFLINE": "1"}, "VISPEFT_OFFLINE"),
        ({"HF_HUB_OFFLINE": "TRUE"}, "HF_HUB_OFFLINE"),
    ],
)
def test_offline_variable__is_one_that_is_true(environment: dict[str, str], found: str | None) -> None:
    assert offline_variable(environment) == found


def test_request_offline_libraries__sets_the_hubs_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    request_offline_libraries()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
