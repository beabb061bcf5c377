"""A run as files that others can use, and their upload to the hub."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vispeft.config import Config, dump_config, parse_config
from vispeft.engine.kept_classes import class_names_in
from vispeft.engine.model_card import Card, model_card
from vispeft.engine.run_directory import RunDirectory
from vispeft.engine.weights_source import is_shared
from vispeft.errors import CheckpointError, writing
from vispeft.io import run_layout
from vispeft.io.atomic import write_text
from vispeft.io.hub import HubName, upload_folder
from vispeft.io.json_files import read_object, write_json
from vispeft.io.tensors import read_tensors, write_tensors

CARD_FILE = "README.md"
_FILES = {
    run_layout.ADAPTER_FILE,
    run_layout.SUMMARY_FILE,
    run_layout.CONFIG_FILE,
    run_layout.CATEGORIES_FILE,
    CARD_FILE,
}


@dataclass(frozen=True)
class ShareOptions:
    """Repository of a shared run, and what its card says beyond the run's own files.

    repository: user/name
    licence: identifier of the hub, such as mit
    datasets: names of the hub
    weights: replaces `model.weights` of the run where that is a file of this machine
    """

    repository: str
    licence: str | None = None
    datasets: tuple[str, ...] = ()
    weights: str | None = None

    @cached_property
    def name(self) -> HubName:
        """The repository's name, checked."""
        return HubName.parse_repository(self.repository)


def push_run(root: Path, options: ShareOptions, *, is_private: bool, token: str | None) -> str:
    """Upload a finished run and return the address of the commit."""
    with tempfile.TemporaryDirectory(prefix="vispeft-push-") as place:
        folder = write_shared(root, options, Path(place) / "run")
        return upload_folder(
            folder,
            options.name,
            is_private=is_private,
            token=token,
            message="Upload a run of vispeft",
        )


def write_shared(root: Path, options: ShareOptions, folder: Path) -> Path:
    """Write what `push_run` uploads: adapter, configuration, summary, class names and card; return the folder.

    The configuration has no paths of the data. Images and annotations stay here.

    Raises CheckpointError where the run is not finished, others could not build its base, or the folder holds files
    other than those of an earlier call.
    """
    _check_folder(folder)
    directory = RunDirectory(root)
    begun = directory.load_config()
    config = _shared_config(begun, options)
    for path in (directory.adapter, directory.summary, directory.annotations):
        if not path.is_file():
            raise CheckpointError(f"`{path}` is not there: the run is not finished. Go on with it by --resume.")
    summary, annotations = read_object(directory.summary), read_object(directory.annotations)
    if config.model.weights != begun.model.weights:
        summary["model"] = summary["model"].replace(begun.model.weights, config.model.weights)
    card = Card(
        repository=options.name.repository,
        config=config,
        summary=summary,
        num_val_images=len(annotations.get("images", ())),
        class_names=class_names_in(directory.adapter),
        licence=options.licence,
        datasets=options.datasets,
    )
    with writing(folder, CheckpointError):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory.adapter, folder / run_layout.ADAPTER_FILE)
    if config.model.weights != begun.model.weights:
        _rename_base(folder / run_layout.ADAPTER_FILE, begun.model.weights, config.model.weights)
    write_json(folder / run_layout.SUMMARY_FILE, summary, raises=CheckpointError, indent=1)
    write_text(folder / run_layout.CONFIG_FILE, dump_config(config), raises=CheckpointError)
    categories = {"categories": annotations.get("categories", [])}
    write_json(folder / run_layout.CATEGORIES_FILE, categories, raises=CheckpointError, indent=1)
    write_text(folder / CARD_FILE, model_card(card), raises=CheckpointError)
    return folder


def _check_folder(folder: Path) -> None:
    """Refuse a folder of other files, which may have the same names: one that lacks the adapter, or has more."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = there - _FILES if run_layout.ADAPTER_FILE in there else there
    if others:
        named = ", ".join(sorted(others)[:3])
        raise CheckpointError(f"`{folder}` holds other files ({named}). Give a new folder.")


def _rename_base(adapter: Path, old: str, new: str) -> None:
    """Replace the place of the base's weights in the header of an adapter file."""
    tensors, header = read_tensors(adapter)
    write_tensors(adapter, tensors, {key: text.replace(old, new) for key, text in header.items()})


def _shared_config(config: Config, options: ShareOptions) -> Config:
    """Return the configuration without places of this machine. Raises CheckpointError where its base is one."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    for split in ("train", "val"):
        raw.get("data", {}).pop(split, None)
    raw.get("train", {}).pop("feature_cache", None)
    model = raw.setdefault("model", {})
    if options.weights is not None:
        model["weights"] = options.weights
    shared = parse_config(raw)
    weights = shared.model.weights
    is_hub_model = shared.model.name == "transformers" and not Path(weights).expanduser().exists()
    if not is_shared(weights) and not is_hub_model:
        raise CheckpointError(
            f"The base of the run is the file {weights} of this machine, without which its adapter is of no use to "
            "others. Name where they find it: --weights hf://user/name, https://... or a name of `vispeft models`. Or "
            "share the merged model (vispeft merge)."
        )
    if shared.model.backbone_weights is not None:
        raise CheckpointError(
            f"The encoder of the run is the file {shared.model.backbone_weights} of this machine "
            "(`model.backbone_weights`), which others do not have. Share the merged model instead (vispeft merge)."
        )
    if shared.peft.modules:
        raise CheckpointError(
            f"The methods of the run are in the Python modules {', '.join(shared.peft.modules)} (`peft.modules`), "
            "which a repository cannot bring. Share the merged model instead (vispeft merge)."
        )
    return shared
