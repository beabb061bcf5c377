"""Weights that `model.weights` names: a file of this machine, a published model, an address, or a name of the hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from vispeft.errors import CheckpointError
from vispeft.io.cache import cache_dir, hub_cache_dir
from vispeft.io.downloads import Report, download, is_url
from vispeft.io.hub import HubName, hub_file, is_hub_name, list_files
from vispeft.io.names import nearest_names
from vispeft.io.run_layout import ADAPTER_FILE, CONFIG_FILE
from vispeft.models.bundled import BUNDLED
from vispeft.models.weight_files import weights_path
from vispeft.training.devices import is_first_process
from vispeft.training.progress import ProgressReport, open_progress
from vispeft.zoo import MODELS, ZooModel

PRETRAINED = "pretrained"
NONE = "none"
# endings of weights files, the best first
_ENDINGS = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
# what a directory of transformers consists of, beside its weights
_DIRECTORY_FILE = re.compile(r"[^/]+\.(json|txt|model)")

# writes the merged checkpoint of a folder with a run's adapter and configuration, and returns its path
MergeRun = Callable[[Path, Path], Path]


def published(weights: str) -> ZooModel | None:
    """Return the published model that `model.weights` names; None for anything else, and for the bundled base."""
    return None if weights == BUNDLED else MODELS.get(weights)


def is_shared(weights: str) -> bool:
    """Return True for weights that another machine can fetch or has."""
    return weights in (BUNDLED, PRETRAINED, NONE, *MODELS) or is_url(weights) or is_hub_name(weights)


def local_weights(weights: str, merge_run: MergeRun, *, takes_directories: bool = False) -> Path:
    """Return the path of a weights file, fetched first where it is elsewhere.

    takes_directories: return a repository of the hub in the form of transformers as a directory
    merge_run: for repositories of the hub that hold a run of `vispeft push`, whose merged model are the weights
    """
    model = published(weights)
    source = weights if model is None else model.weights
    if not is_url(source) and not is_hub_name(source):
        path = weights_path(source)
        near = [] if path.suffix or path.exists() else nearest_names(source, MODELS, cutoff=0.8)
        if near:
            raise CheckpointError(
                f"`model.weights: {source}` is neither a file nor a model that `vispeft models` lists. Did you mean "
                f"`{near[0]}`?"
            )
        return path
    if takes_directories and is_hub_name(source) and _is_transformers(source, hub_cache_dir()):
        return _fetched_directory(source, hub_cache_dir())
    # asked for several times in a run
    path = _fetched(source, cache_dir(), hub_cache_dir())
    return _merged(source, path, merge_run) if path.name == ADAPTER_FILE else path


def local_directory(weights: str) -> str:
    """Return the directory of a model of transformers, fetched first for `hf://` names.

    Names of the hub without `hf://` are returned unchanged, for that library to fetch.
    """
    model = published(weights)
    source = weights if model is None else model.weights
    return str(_fetched_directory(source, hub_cache_dir())) if is_hub_name(source) else source


@lru_cache
def _fetched(source: str, cache: Path, hub_cache: Path) -> Path:
    """Return the path of a file that was elsewhere. cache, hub_cache: in which a file was found"""
    if is_url(source):
        with _progress(Path(source.partition("#")[0]).name) as report:
            return download(source, report)
    name = HubName.parse(source)
    if name.file is not None:
        return hub_file(name, name.file)
    file = _weights_of(name, list_files(name))
    if file == ADAPTER_FILE:
        hub_file(name, CONFIG_FILE)
    return hub_file(name, file)


def _weights_of(name: HubName, files: list[str]) -> str:
    """Return the one weights file of a repository; CheckpointError where there is none, or a choice."""
    if ADAPTER_FILE in files and CONFIG_FILE in files:
        return ADAPTER_FILE
    found = [[file for file in files if file.endswith(ending)] for ending in _ENDINGS]
    best = next((candidates for candidates in found if candidates), [])
    if len(best) == 1:
        return best[0]
    if not best:
        raise CheckpointError(f"{name} holds no weights file ({', '.join(_ENDINGS)}). Check its name.")
    raise CheckpointError(
        f"{name} holds {len(best)} weights files: {', '.join(best[:5])}. Name one of them: hf://{name.repository}/FILE."
    )


@lru_cache
def _is_transformers(source: str, hub_cache: Path) -> bool:
    """Tell whether a repository has a model's configuration and that of its image processor."""
    name = HubName.parse(source)
    return name.file is None and {"config.json", "preprocessor_config.json"} <= set(list_files(name))


@lru_cache
def _fetched_directory(source: str, hub_cache: Path) -> Path:
    name = HubName.parse(source)
    if name.file is not None:
        raise CheckpointError(f"`{name}` must name a directory of transformers, but names a file of it. Leave it out.")
    files = list_files(name)
    if "config.json" not in files:
        raise CheckpointError(f"{name} has no config.json: it is no directory of transformers.")
    weights = [file for file in files if re.fullmatch(r"model[^/]*\.safetensors", file)]
    weights = weights or [file for file in files if re.fullmatch(r"pytorch_model[^/]*\.bin", file)]
    for file in [file for file in files if _DIRECTORY_FILE.fullmatch(file)] + weights:
        hub_file(name, file)
    return hub_file(name, "config.json").parent


def _merged(source: str, adapter: Path, merge_run: MergeRun) -> Path:
    """Return the merged checkpoint of a run of the hub, made once for each commit."""
    name = HubName.parse(source)
    # the folder of a commit in the hub's cache has the commit's name
    place = cache_dir() / "merged" / name.repository.replace("/", "--") / f"{adapter.parent.name}.safetensors"
    return place if place.is_file() else merge_run(adapter.parent, place)


def _megabytes(count: int) -> int:
    """Return a number of bytes in megabytes, rounded up."""
    return -(-count >> 20)


@contextlib.contextmanager
def _progress(file: str) -> Iterator[Report]:
    """Context with a function that shows the progress of a download, once its size is known."""
    with contextlib.ExitStack() as stack:
        bar: list[ProgressReport] = []

        def report(done: int, total: int) -> None:
            if not bar:
                size, start = _megabytes(max(total, done)), _megabytes(done)
                progress = open_progress(f"fetch {file}", size, unit="MB", start=start, is_shown=is_first_process())
                bar.append(stack.enter_context(progress))
            bar[0].update(_megabytes(done))

        yield report
