"""Names of the hub, and its files by the real client against a stand-in."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vispeft.errors import CheckpointError, ConfigError
from vispeft.io.hub import HubName, hub_file, is_hub_name, list_files, upload_folder

NAME = HubName("someone/model")
CARD = "---\nlibrary_name: vispeft\n---\n# Model\n"


@pytest.fixture
def filled(hub: Any, hub_stand_in: ModuleType) -> Any:
    """The server with one repository."""
    hub.repositories["someone/model"] = hub_stand_in.Repository({"a.bin": b"weights", "folder/b.json": b"{}"})
    return hub


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://user/name", HubName("user/name")),
        ("user/name", HubName("user/name")),
        ("hf://user/na.me-1/folder/file.bin", HubName("user/na.me-1", "folder/file.bin")),
        ("hf://user/name@v1.0", HubName("user/name", None, "v1.0")),
        ("hf://user/name/file.bin@refs/pr/1", HubName("user/name", "file.bin", "refs/pr/1")),
        (str(Path("hf://user/name")), HubName("user/name")),
    ],
    ids=str,
)
def test_parse__reads_all_parts(source: str, name: HubName) -> None:
    assert HubName.parse(source) == name
    assert HubName.parse(str(name)) == name


@pytest.mark.parametrize(
    "source",
    ["hf://name", "hf://../x", "hf://user/..", "hf://user/name/../../x", "hf://-a/b", "hf://a/b@", "hf://a/b c"],
)
def test_parse__refuses_other_forms(source: str) -> None:
    with pytest.raises(ConfigError, match="must have the form `hf://user/name`"):
        HubName.parse(source)


def test_parse__shows_the_name_as_it_was_written() -> None:
    with pytest.raises(ConfigError, match="`hf://user` must have the form"):
        HubName.parse(str(Path("hf://user")))


def test_is_hub_name__needs_the_scheme() -> None:
    assert is_hub_name("hf://user/name")
    assert is_hub_name(str(Path("hf://user/name")))
    assert not is_hub_name("user/name")
    assert not is_hub_name("hf")


def test_files__are_listed_and_fetched_once(filled: Any, tmp_path: Path) -> None:
    assert list_files(NAME) == ["a.bin", "folder/b.json"]
    path = hub_file(NAME, "a.bin")
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(tmp_path / "hf" / "hub")
    assert hub_file(NAME, "a.bin") == path
    assert len(filled.asked("GET", "/someone/model/resolve/main/a.bin")) == 1
    commit = filled.repositories["someone/model"].commit
    assert hub_file(HubName("someone/model", revision=commit), "a.bin").parent.name == commit


def test_hub_file__is_complete_after_a_broken_connection(filled: Any) -> None:
    filled.most_bytes = [3]
    try:
        hub_file(NAME, "a.bin")
    except CheckpointError:
        assert not [path for path in list_cached(NAME) if path.name == "a.bin"]
    assert hub_file(NAME, "a.bin").read_bytes() == b"weights"


def list_cached(name: HubName) -> list[Path]:
    from vispeft.io.cache import hub_cache_dir

    folder = hub_cache_dir() / f"models--{name.repository.replace('/', '--')}" / "snapshots"
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("file", ["../evil", "/etc/passwd", "a/../../evil", "..\\evil", "c:evil"])
def test_list_files__refuses_names_that_lead_out(file: str, filled: Any) -> None:
    filled.repositories["someone/model"].listed = [file]
    with pytest.raises(CheckpointError, match="may lead out of the cache"):
        list_files(NAME)
    with pytest.raises(CheckpointError, match="may lead out of the cache"):
        hub_file(NAME, file)


def test_offline__takes_the_cache_alone(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub_file(NAME, "a.bin")
    count = len(filled.requests)
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    assert hub_file(NAME, "a.bin") == path
    assert list_files(NAME) == ["a.bin"]
    for ask in (lambda: hub_file(NAME, "other"), lambda: list_files(HubName("a/b"))):
        with pytest.raises(CheckpointError, match=r"is not in the cache .* and `VISPEFT_OFFLINE` forbids the network"):
            ask()
    with pytest.raises(CheckpointError, match="`VISPEFT_OFFLINE` forbids the network, which hf://someone/model needs"):
        upload_folder(path.parent, NAME, is_private=False, token=None, message="m")
    assert len(filled.requests) == count


def test_without_a_network__the_cache_is_used_or_one_sentence_is_said(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub_file(NAME, "a.bin")
    # nothing listens at this port
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_file(NAME, "a.bin") == path
    assert list_files(NAME) == ["a.bin"]
    for ask in (lambda: hub_file(NAME, "other"), lambda: list_files(HubName("a/b"))):
        with pytest.raises(CheckpointError, match=r"The hub cannot be reached for hf://.* Check the network") as error:
            ask()
        assert len(str(error.value).splitlines()) == 1


def test_errors__name_the_fault(filled: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a/b is not on the hub, or is private. .* `HF_TOKEN`"):
        list_files(HubName("a/b"))
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        list_files(HubName("someone/model", revision="v9"))
    with pytest.raises(CheckpointError, match=r"has no file b\.bin on the hub. Did you mean `a\.bin`"):
        hub_file(NAME, "b.bin")
    filled.status = 500
    with pytest.raises(CheckpointError, match="The hub answers 500 for hf://someone/model"):
        list_files(NAME)


def test_upload_folder__makes_a_repository(
    hub: Any, hub_stand_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text(CARD)
    (tmp_path / "run" / "a.bin").write_bytes(b"weights")
    token = hub_stand_in.TOKEN
    address = upload_folder(tmp_path / "run", HubName("me/mine"), is_private=True, token=token, message="first")
    made = hub.repositories["me/mine"]
    assert made.files == {"README.md": CARD.encode(), "a.bin": b"weights"}
    assert made.is_private
    assert address == f"{hub.url}/me/mine/commit/{made.commit}"
    (tmp_path / "run" / "a.bin").write_bytes(b"better weights")
    upload_folder(tmp_path / "run", HubName("me/mine"), is_private=False, token=token, message="second")
    assert made.files["a.bin"] == b"better weights"
    with pytest.raises(CheckpointError, match="is private"):
        list_files(HubName("me/mine"))
    monkeypatch.setenv("HF_TOKEN", token)
    assert list_files(HubName("me/mine")) == ["README.md", "a.bin"]


def test_upload_folder__says_that_a_token_is_needed(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(CheckpointError, match=r"The hub answers 401 for hf://me/mine. Name a token"):
        upload_folder(tmp_path, HubName("me/mine"), is_private=False, token="hf_wrong", message="m")


def test_upload_folder__does_not_put_private_files_in_a_public_repository(
    hub: Any, hub_stand_in: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(CARD)
    hub.repositories["me/mine"] = hub_stand_in.Repository()
    with pytest.raises(CheckpointError, match="hf://me/mine is there and public: nothing was uploaded"):
        upload_folder(tmp_path, HubName("me/mine"), is_private=True, token=hub_stand_in.TOKEN, message="m")
    assert not hub.repositories["me/mine"].files


@pytest.mark.parametrize("source", ["me/mine/file", "hf://me/mine@v1"])
def test_parse_repository__refuses_files_and_revisions(source: str) -> None:
    assert HubName.parse_repository("me/mine") == HubName.parse_repository("hf://me/mine") == HubName("me/mine")
    with pytest.raises(ConfigError, match="must be the name of a repository, user/name, without"):
        HubName.parse_repository(source)
