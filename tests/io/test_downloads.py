"""Downloads by address: resumed, checked, kept, and never outside of the cache."""

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from vispeft.errors import CheckpointError, ConfigError
from vispeft.io.checksums import Checksum, split_checksum
from vispeft.io.downloads import cached_path, download

CONTENT = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def ranges(hub: Any, path: str = "/model.pth") -> list[str | None]:
    return [headers.get("Range") for headers in hub.asked("GET", path)]


def leftovers(url: str) -> set[str]:
    """What lies beside the file of an address."""
    path = cached_path(url)
    return {other.name.removeprefix(path.name) for other in path.parent.iterdir()} - {".lock"}


def test_download__reports_progress_and_fetches_once(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    url, seen = f"{hub.url}/model.pth", []
    path = download(url, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert [total for _, total in seen] == [len(CONTENT)] * len(seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == len(CONTENT)
    assert download(url) == path
    assert ranges(hub) == [None]
    assert leftovers(url) == {""}


def test_download__goes_on_after_a_broken_connection(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    hub.most_bytes = [300_000, 100_000]
    assert download(f"{hub.url}/model.pth").read_bytes() == CONTENT
    assert ranges(hub) == [None, "bytes=300000-", "bytes=400000-"]


def test_download__goes_on_in_a_later_process(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    hub.most_bytes = [300_000, 0, 0, 0]
    url = f"{hub.url}/model.pth"
    with pytest.raises(CheckpointError, match=r"ended early; the 300,000 bytes that have arrived are kept"):
        download(url)
    assert not cached_path(url).exists()
    assert download(url).read_bytes() == CONTENT
    assert ranges(hub)[-1] == "bytes=300000-"


def test_download__starts_again_where_the_server_has_another_file(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    hub.most_bytes = [300_000, 0, 0, 0]
    with pytest.raises(CheckpointError):
        download(f"{hub.url}/model.pth")
    hub.files["/model.pth"] = CONTENT[::-1]
    assert download(f"{hub.url}/model.pth").read_bytes() == CONTENT[::-1]


def test_download__starts_again_without_a_tag(hub: Any) -> None:
    hub.files["/model.pth"], hub.has_tags = CONTENT, False
    hub.most_bytes = [300_000]
    assert download(f"{hub.url}/model.pth").read_bytes() == CONTENT
    assert ranges(hub) == [None, None]


def test_download__accepts_a_part_that_is_complete(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    url = f"{hub.url}/model.pth"
    path = download(url)
    tag = f'"{SHA256}"'
    path.rename(path.with_name(path.name + ".partial"))
    path.with_name(path.name + ".etag").write_text(tag)
    assert download(url).read_bytes() == CONTENT
    assert ranges(hub) == [None, f"bytes={len(CONTENT)}-"]


def test_download__deletes_a_part_that_is_too_long(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    url = f"{hub.url}/model.pth"
    path = download(url)
    path.with_name(path.name + ".partial").write_bytes(CONTENT + b"more")
    path.with_name(path.name + ".etag").write_text(f'"{SHA256}"')
    path.unlink()
    assert download(url).read_bytes() == CONTENT


def test_download__accepts_the_right_checksum(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    assert download(f"{hub.url}/model.pth#sha256={SHA256.upper()}").read_bytes() == CONTENT


def test_download__deletes_a_file_with_a_wrong_checksum(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    url = f"{hub.url}/model.pth#sha256={'0' * 64}"
    with pytest.raises(CheckpointError, match=r"does not have the checksum 0+ \(sha256\): the download was deleted"):
        download(url)
    assert leftovers(url) == set()


def test_download__checks_a_cached_file_and_leaves_it(hub: Any) -> None:
    hub.files["/model.pth"] = CONTENT
    url = f"{hub.url}/model.pth"
    path = download(url)
    with pytest.raises(
        CheckpointError, match=r"model\.pth`, which was downloaded from .* does not have the checksum 0+"
    ):
        download(f"{url}#sha256={'0' * 64}")
    assert path.read_bytes() == CONTENT
    assert download(f"{url}#sha256={SHA256}") == path
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(CheckpointError, match=r"Delete the file to download it again"):
        download(f"{url}#sha256={SHA256}")


def test_download__reads_a_cached_file_once_for_its_checksum(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["/model.pth"] = CONTENT
    url = f"{hub.url}/model.pth#sha256={SHA256}"
    path = download(url)
    monkeypatch.setattr(Checksum, "fits", lambda *_: pytest.fail("was read again"))
    assert download(url) == path


@pytest.mark.parametrize(
    ("url", "checksum"),
    [
        ("https://dl.fbaipublicfiles.com/a/model_final_3c8ec9.pkl", Checksum("3c8ec9", ("md5", "sha256"))),
        ("https://download.pytorch.org/models/resnet50-0676ba61.pth", Checksum("0676ba61", ("md5", "sha256"))),
        ("https://dl.fbaipublicfiles.com/a/model_decade.pth", None),
        ("https://dl.fbaipublicfiles.com/a/model_final.pkl", None),
        # a date on a host without this habit
        ("https://example.com/model-20230115.pth", None),
    ],
)
def test_split_checksum__takes_that_of_the_name_on_hosts_that_have_it(url: str, checksum: Checksum | None) -> None:
    assert split_checksum(url) == (url, checksum)


def test_checksum__fits_by_either_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    for digits, fits in ((md5[:6], True), (SHA256[:6], True), ("zzzzzz", False)):
        assert Checksum(digits, ("md5", "sha256")).fits(path) is fits
    assert not Checksum(md5[:6]).fits(path)


@pytest.mark.parametrize(
    "url", ["http://example.com/model.pth", "https:///model.pth", "https://example.com/model.pth#md5=00"]
)
def test_download__refuses_addresses_of_another_form(url: str) -> None:
    with pytest.raises(ConfigError, match="must"):
        download(url)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://a.b/x/../../../etc/passwd", "passwd"),
        ("https://a.b/..%2F..%2Fevil", "_.._evil"),
        ("https://a.b/..", "file"),
        ("https://a.b/", "file"),
        ("https://a.b/.hidden", "hidden"),
        (f"https://a.b/{'n' * 400}.pth", f"{'n' * 146}.pth"),
    ],
)
def test_cached_path__stays_within_the_cache(address: str, name: str, hub: Any, tmp_path: Path) -> None:
    path = cached_path(address)
    assert path.name == name
    assert path.resolve().is_relative_to(tmp_path / "cache" / "downloads")


def test_download__says_what_the_server_answers(hub: Any) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be downloaded: the server answers 404"):
        download(f"{hub.url}/none.pth")
    assert len(hub.requests) == 1
    hub.status = 503
    with pytest.raises(CheckpointError, match="the server answers 503"):
        download(f"{hub.url}/none.pth")
    assert len(hub.requests) == 4


def test_download__without_a_network_is_one_sentence(hub: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        # nothing listens at this port
        download("http://127.0.0.1:9/model.pth")
    assert str(error.value) == (
        "http://127.0.0.1:9/model.pth cannot be downloaded: Connection refused. Check the network and run again."
    )


def test_download__offline_takes_the_cache_alone(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["/model.pth"] = CONTENT
    path = download(f"{hub.url}/model.pth")
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    assert download(f"{hub.url}/model.pth") == path
    with pytest.raises(CheckpointError, match=r"other\.pth is not in the cache .* and `VISPEFT_OFFLINE` forbids"):
        download(f"{hub.url}/other.pth")
    assert len(hub.requests) == 1
