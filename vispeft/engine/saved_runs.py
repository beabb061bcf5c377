"""Model of a finished run, its metrics on any set, and its plain checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vispeft import peft
from vispeft.coco.sets import Category, CocoSet, match_categories
from vispeft.config import Config
from vispeft.engine.build import arguments_without_weights, build_base, complete
from vispeft.engine.hub_runs import fetch_run
from vispeft.engine.kept_classes import class_names_in
from vispeft.engine.loaders import Share, check_named, image_size, read_split, val_loader
from vispeft.engine.merged import merge_deltas, save_checkpoint
from vispeft.engine.published_runs import classes_of, published_config
from vispeft.engine.run_directory import RunDirectory
from vispeft.engine.scoring import predict_split
from vispeft.engine.settings import fabric_of
from vispeft.engine.tasks.registry import TASKS
from vispeft.errors import CheckpointError, ConfigError, DataError
from vispeft.evaluation import Metrics
from vispeft.io.hub import is_hub_name
from vispeft.io.json_files import read_json
from vispeft.io.names import nearest_names
from vispeft.models import SegmentationModel
from vispeft.models.base import SavesDirectory
from vispeft.models.checkpoint_metadata import CheckpointMetadata
from vispeft.models.registry import family_of
from vispeft.zoo import MODELS, ZooModel


@dataclass(frozen=True)
class LoadedRun:
    """A run with its model on the CPU.

    class_names: by contiguous class index
    category_ids: the validation file's own id of each class
    is_thing: of each class, see `vispeft.coco.sets.Category`
    """

    directory: RunDirectory
    config: Config
    model: SegmentationModel
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    is_thing: tuple[bool | None, ...]

    @property
    def categories(self) -> list[dict[str, Any]]:
        """Return the classes as a COCO file lists them."""
        return [
            {"id": identifier, "name": name, **({} if is_thing is None else {"isthing": int(is_thing)})}
            for identifier, name, is_thing in zip(self.category_ids, self.class_names, self.is_thing, strict=True)
        ]


def load_run(root: str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedRun:
    """Return the model of a run, rebuilt from its configuration and its adapter file; of a published model its own.

    root: run directory, `hf://user/name` of a run of `vispeft push`, or a name of `vispeft models`
    """
    source = os.fspath(root)
    if (model := _published(source)) is not None:
        return _published_run(model, overrides)
    run = load_base(source, overrides)
    peft.load_adapter(run.model, run.directory.adapter)
    run.model.eval()
    return run


def load_base(root: str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedRun:
    """Return a run with the base model that it started from, without its adapter file.

    root: run directory, or `hf://user/name` of a run of `vispeft push`
    """
    source = os.fspath(root)
    if _published(source) is not None:
        raise ConfigError(f"`{source}` is a published model, which has no adapter. Name a run directory.")
    if not Path(source).exists() and (near := nearest_names(source, MODELS, cutoff=0.8)):
        raise ConfigError(
            f"`{source}` is neither a run directory nor a model that `vispeft models` lists. Did you mean `{near[0]}`?"
        )
    directory = RunDirectory(fetch_run(source) if is_hub_name(source) else Path(source))
    config = directory.load_config(overrides)
    if not directory.adapter.is_file():
        raise CheckpointError(f"`{directory.adapter}` is not there yet. Finish the run: vispeft train ... --resume")
    class_names = class_names_in(directory.adapter)
    listed = directory.annotations if directory.annotations.exists() else directory.categories
    categories = _categories(listed if listed.exists() else directory.annotations, class_names)
    model = build_base(config, len(class_names), class_names=class_names)
    category_ids, is_thing = (tuple(values) for values in zip(*((c.id, c.is_thing) for c in categories), strict=True))
    return LoadedRun(directory, config, model, class_names, category_ids, is_thing)


def _published(source: str) -> ZooModel | None:
    """Return the published model of this name; None for anything else, and where a file or folder has the name."""
    return None if Path(source).exists() else MODELS.get(source)


def _published_run(model: ZooModel, overrides: Sequence[str]) -> LoadedRun:
    """Return a published model as a run without deltas."""
    config = complete(published_config(model, overrides), num_images=1)
    names, ids = classes_of(model)
    base = build_base(config, len(names), class_names=names)
    base.eval()
    return LoadedRun(RunDirectory(Path(model.name)), config, base, names, ids, (None,) * len(names))


def _categories(annotations: Path, class_names: Sequence[str]) -> tuple[Category, ...]:
    """Return the classes with the validation file's own ids."""
    document = read_json(annotations)
    entries = document.get("categories") if isinstance(document, dict) else None
    found: dict[Any, Category] = {
        entry.get("name"): Category(
            entry["id"], str(entry.get("name")), bool(entry["isthing"]) if "isthing" in entry else None
        )
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    }
    lacking = [name for name in class_names if name not in found]
    if lacking:
        raise DataError(
            f"`{annotations}` must list the classes of its run, but lacks {', '.join(lacking[:5])}. "
            "Put the file back as `vispeft train` wrote it."
        )
    return tuple(found[name] for name in class_names)


def evaluate_run(root: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Metrics:
    """Return the metrics of a run's best adapter on the validation set of its configuration or of an override.

    They are those of the run's task, such as `CocoMetrics`.
    """
    if (model := _published(os.fspath(root))) is not None:
        # before its weights are fetched
        check_named(published_config(model, overrides).data.val, "data.val")
    run = load_run(root, overrides)
    fabric = fabric_of(run.config.train)
    read = read_split(run.config.data.val, "data.val", run.model.num_channels, task=run.config.task)
    coco_set = _with_classes(read, run)
    run.model.to(fabric.device)
    loader = val_loader(run.config, coco_set, run.model, Share(fabric.global_rank, fabric.world_size))
    results = predict_split(run.config, fabric, coco_set, run.model, run.model, loader)
    task = TASKS[run.config.task]
    return task.evaluate(task.annotations(coco_set), results, run.config.eval)


def write_merged(run: LoadedRun, out: Path) -> None:
    """Write one plain checkpoint of the whole model, deltas merged.

    Frozen weights in a lower precision become float32.

    out: a .safetensors file, which has the model arguments as metadata, or a directory of transformers for a family
        that can be written as such; models of transformers have no other form
    """
    name, is_file = run.config.model.name, out.suffix == ".safetensors"
    if is_file and family_of(name).reads_weights:
        raise CheckpointError(f"`--out` must be a directory for `model.name: {name}`, but is {out}.")
    if not is_file and not isinstance(run.model, SavesDirectory):
        raise CheckpointError(f"`--out` must end in .safetensors, but is {out}.")
    _refuse_needed_files(run, out)
    merge_deltas(run.model, run.config.model.frozen_precision)
    if not is_file and isinstance(run.model, SavesDirectory):
        run.model.save_directory(out, class_names=run.class_names, image_size=image_size(run.config))
        return
    metadata = CheckpointMetadata(arguments_without_weights(run.config.model, run.config.task), image_size(run.config))
    save_checkpoint(run.model, out, metadata, class_names=run.class_names)


def _refuse_needed_files(run: LoadedRun, out: Path) -> None:
    """Refuse to write over what the run needs: its adapter, and the weights that it was trained from."""
    model = run.config.model
    needed = [run.directory.adapter, *(Path(each) for each in (model.weights, model.backbone_weights) if each)]
    for path in map(Path.expanduser, needed):
        if path.exists() and out.exists() and path.samefile(out):
            raise CheckpointError(f"`--out` is {out}, without which the run cannot be used. Give another one.")


def _with_classes(coco_set: CocoSet, run: LoadedRun) -> CocoSet:
    """Return the set with the run's class indices, matched by name."""
    pairs = zip(run.class_names, run.is_thing, strict=True)
    classes = tuple(Category(index, name, is_thing) for index, (name, is_thing) in enumerate(pairs))
    return match_categories(replace(coco_set, annotations_path=run.directory.config, categories=classes), coco_set)
