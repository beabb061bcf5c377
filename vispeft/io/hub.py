"""Files of the Hugging Face hub: names such as `hf://user/name/file@revision`, downloads and uploads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vispeft.errors import CheckpointError, ConfigError
from vispeft.io.cache import hub_cache_dir, offline_variable
from vispeft.io.names import did_you_mean

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# a `Path` keeps one of the slashes
_SCHEME = re.compile(r"hf:/{1,2}")
_PART = r"[A-Za-z0-9](?:[\w.-]*[\w-])?"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
_READ_REMEDY = "Check the network; with `VISPEFT_OFFLINE=1` the cache alone is used."
_FORM = "`hf://user/name`, where `/file` and `@revision` may follow"


@dataclass(frozen=True)
class HubName:
    """Name of a repository of the hub, and of one of its files.

    revision: branch, tag or commit
    """

    repository: str
    file: str | None = None
    revision: str = "main"

    @classmethod
    def parse(cls, source: str) -> HubName:
        """Return the parts of a name; ConfigError for one of another form."""
        found = _NAME.fullmatch(_SCHEME.sub("", source, count=1))
        if found is None or ".." in source:
            raise ConfigError(f"`{_SCHEME.sub('hf://', source, count=1)}` must have the form {_FORM}.")
        file = found["file"]
        return cls(found["repository"], None if file is None else safe_file(file, source), found["revision"] or "main")

    @classmethod
    def parse_repository(cls, source: str) -> HubName:
        """Return the name of a whole repository; ConfigError for one of another form, or with a file or revision."""
        found = _NAME.fullmatch(_SCHEME.sub("", source, count=1))
        if found is None or ".." in source or found["file"] is not None or found["revision"] not in (None, "main"):
            raise ConfigError(f"`{source}` must be the name of a repository, user/name, without a file or revision.")
        return cls(found["repository"])

    def __str__(self) -> str:
        file = "" if self.file is None else f"/{self.file}"
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repository}{file}{revision}"


def is_hub_name(source: str) -> bool:
    """Return True for a name that begins with `hf://`."""
    return _SCHEME.match(source) is not None


def safe_file(name: str, source: str) -> str:
    """Return the name of a file within a repository; CheckpointError for one that leads out of its folder."""
    path = PurePosixPath(name)
    # a backslash or a colon would be a folder or a drive on Windows
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00]", name) or not path.parts:
        raise CheckpointError(f"`{source}` names the file {name!r}, which may lead out of the cache. It is not read.")
    return path.as_posix()


def list_files(name: HubName) -> list[str]:
    """Return the files of a repository, sorted; without a network those that the cache has."""
    from huggingface_hub.errors import HfHubHTTPError

    snapshot = _cached_snapshot(name)
    if offline_variable() is not None:
        if snapshot is None:
            raise _not_cached(name)
        return _files_below(snapshot)
    with _asking(name):
        try:
            return _files_of(name)
        except HfHubHTTPError:
            # the hub has answered
            raise
        except _connection_errors():
            if snapshot is None:
                raise
            return _files_below(snapshot)


def _files_of(name: HubName) -> list[str]:
    """Return the files of a repository as the hub lists them, sorted."""
    siblings = _api().model_info(name.repository, revision=name.revision).siblings or ()
    return sorted(safe_file(sibling.rfilename, str(name)) for sibling in siblings)


def _files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hub_file(name: HubName, file: str) -> Path:
    """Return the path of a file of a repository, downloaded unless the cache has it.

    huggingface_hub resumes downloads, checks their sizes and shows the progress.
    """
    safe = safe_file(file, str(name))
    snapshot = _cached_snapshot(name)
    is_cached = snapshot is not None and (snapshot / safe).is_file()
    if offline_variable() is not None:
        if snapshot is None or not is_cached:
            raise _not_cached(name, safe)
        return snapshot / safe
    with _asking(name):
        # without a network this fails at once, where the download of a file is tried again for half a minute
        if not is_cached and safe not in (files := _files_of(name)):
            raise CheckpointError(f"{name} has no file {safe} on the hub.{did_you_mean(safe, files)}")
        path = _api().hf_hub_download(name.repository, safe, revision=name.revision, cache_dir=hub_cache_dir())
    return Path(path)


def upload_folder(folder: Path, name: HubName, *, is_private: bool, token: str | None, message: str) -> str:
    """Upload the files of a folder to a repository, which is made unless it is there; return the commit's address.

    is_private: make a new repository private. Raises CheckpointError where it is there and public.
    """
    variable = offline_variable()
    if variable is not None:
        raise CheckpointError(f"`{variable}` forbids the network, which {name} needs. Run without it, or --dry-run.")
    with _asking(name, remedy="Check the network."):
        api = _api(token)
        # without the option a new repository is as its owner's account has it
        api.create_repo(name.repository, private=is_private or None, exist_ok=True)
        if is_private and api.model_info(name.repository).private is False:
            raise CheckpointError(
                f"{name} is there and public: nothing was uploaded. Make it private on its page of the hub, or choose "
                "another name."
            )
        commit = api.upload_folder(folder_path=folder, repo_id=name.repository, commit_message=message)
    return str(commit.commit_url)


def _api(token: str | None = None) -> HfApi:
    """Return the hub's client. It asks `HF_ENDPOINT`, and reads the token of `HF_TOKEN` or a login unless given."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="vispeft")


def _cached_snapshot(name: HubName) -> Path | None:
    """Return the folder of a revision in the hub's cache; None where it has none."""
    folder = hub_cache_dir() / f"models--{name.repository.replace('/', '--')}"
    reference = folder / "refs" / name.revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else name.revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _not_cached(name: HubName, file: str | None = None) -> CheckpointError:
    what = str(name) if file is None else f"{file} of {name}"
    return CheckpointError(
        f"{what} is not in the cache {hub_cache_dir()}, and `{offline_variable()}` forbids the network. Run once "
        "without it."
    )


@contextlib.contextmanager
def _asking(name: HubName, *, remedy: str = _READ_REMEDY) -> Iterator[None]:
    """Context that turns the client's errors into one sentence each. remedy: without a network"""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is given only to accounts that have accepted its terms. Accept them on its page of the hub, and "
            "name your token by `HF_TOKEN`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name.repository} has no revision {name.revision!r} on the hub. Check it.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name.repository} is not on the hub, or is private. Check the name, or name your token by `HF_TOKEN`."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name} is not in the cache, and the hub cannot be reached. Check the network."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{name} is not on the hub. Check its name.") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        advice = "Name a token that may do this by `HF_TOKEN` or --token." if code in (401, 403) else "Try again later."
        raise CheckpointError(f"The hub answers {code} for {name}. {advice}") from error
    except (errors.HFValidationError, errors.FileMetadataError) as error:
        raise CheckpointError(f"{name} cannot be used ({str(error).splitlines()[0].rstrip('.')}).") from error
    except _connection_errors() as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"The hub cannot be reached for {name} ({reason}). {remedy}") from error


def _connection_errors() -> tuple[type[BaseException], ...]:
    """Return the errors with which the client reports a lack of network: the bases of its own errors, and OSError.

    Its versions speak HTTP through different libraries, whose names they do not make public.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)
