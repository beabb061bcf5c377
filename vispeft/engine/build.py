"""Configuration -> base model, plan, and the model that training changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vispeft import peft
from vispeft.config import Config, ModelConfig, resolve
from vispeft.engine.attach import CLASS_HEAD_RATES
from vispeft.engine.hub_runs import check_shared_config
from vispeft.engine.kept_classes import add_named_classes, class_names_in, known_class_names, weights_class_names
from vispeft.engine.merged import merge_deltas, save_checkpoint
from vispeft.engine.tasks.registry import TASKS
from vispeft.engine.weights_source import NONE, PRETRAINED, local_directory, local_weights, published
from vispeft.errors import CheckpointError, ConfigError, PlanError
from vispeft.io.run_layout import ADAPTER_FILE
from vispeft.models import SegmentationModel, build_model, load_bundled, load_weights
from vispeft.models.base import PredictsLabelMaps, TakesClassNames
from vispeft.models.bundled import BUNDLED, bundled_path
from vispeft.models.checkpoint_metadata import CheckpointMetadata, read_checkpoint_metadata
from vispeft.models.class_head import replace_classes, same_names, starting_classes
from vispeft.models.registry import FAMILIES, family_of
from vispeft.models.roles import roles_for
from vispeft.models.weight_directories import is_weights_directory
from vispeft.models.weight_files import require_file
from vispeft.peft.quantization.frozen_precision import set_frozen_precision
from vispeft.training.devices import trains_on_cpu

DEFAULT_IMAGE_SIZE = 640
# arguments of `timm.create_model` that name weights
_WEIGHTS_OPTIONS = {"checkpoint_path", "pretrained_cfg_overlay"}
# arguments of `build_model` that a weights file leaves open: they change training alone
_OPTIONS_OF_TRAINING = {"denoising_budget", "denoising_noise"}
# what the bundled base was trained at
BUNDLED_IMAGE_SIZE = 256
# argument of `build_model` as its errors name it
_ARGUMENT = re.compile(r"`(name|backbone_options|backbone_weights|backbone|size|image_size|weights|options)(?=[`.=])")


def build_base(
    config: Config, num_classes: int, *, with_weights: bool = True, class_names: Sequence[str] = ()
) -> SegmentationModel:
    """Return the base model without deltas, on the CPU, after a forward pass of its encoder at `model.image_size`.

    Parameters without loaded weights (the decoder over a timm backbone) are initialised from `train.seed`, so that the
    same configuration always gives the same base; the caller's random state stays as it is. What `peft.train` does not
    name is stored in `model.frozen_precision`.

    with_weights: False leaves all weights but the bundled ones random, for callers that only need shapes
    class_names: of all classes, so that each starts from the weights' class with the nearest name, and for models with
        text prompts; with `model.keep_classes` those of the weights come first, and stay
    """
    check_task(config)
    options = TASKS[config.task].model_options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        if config.model.keep_classes and with_weights:
            model = _with_added_classes(config.model, options, class_names)
        elif with_weights and (given := _class_names_in_weights(config.model)) and class_names:
            model = _with_classes_by_name(config.model, options, given, class_names)
        else:
            model = _weighted(config.model, options, num_classes, with_weights)
    if isinstance(model, TakesClassNames) and class_names:
        with naming_model_keys():
            model.set_class_names(class_names)
    _fit_task(model, config)
    with naming_model_keys():
        if config.model.image_size is not None:
            model.check_image_size(config.model.image_size)
    if config.model.activation_checkpointing:
        _checkpoint_activations(model)
    trained = config.peft.train
    set_frozen_precision(model, config.model.frozen_precision, trained=trained, roles=roles_for(model))
    return model


def check_backbone(config: Config) -> None:
    """Raise ConfigError where no model can be built, or its backbone cannot take the image size; needs no data."""
    # before the size, for which a model's files may be fetched
    check_task(config)
    model = config.model.model_copy(update={"image_size": size_of(config.model)})
    build_base(config.model_copy(update={"model": model}), 1, with_weights=False)


def check_task(config: Config) -> None:
    """Raise ConfigError where the models of the family cannot be trained for the task."""
    name = str(model_arguments(config.model)["name"])
    with naming_model_keys():
        tasks = family_of(name).tasks
    if config.task not in tasks:
        able = ", ".join(family for family, entry in FAMILIES.items() if config.task in entry.tasks)
        allowed = " or ".join(filter(None, (", ".join(tasks[:-1]), tasks[-1])))
        raise ConfigError(
            f"`task` must be {allowed} with `model.name: {name}`, but is {config.task}. Families for it: {able}."
        )


def _fit_task(model: SegmentationModel, config: Config) -> None:
    """Tell the task to a model that has an input for it; refuse a model without masks for a task with them."""
    if TASKS[config.task].needs_masks and not model.predicts_masks:
        raise ConfigError(
            f"`task` must be detection with `model.weights: {config.model.weights}`, whose model predicts boxes alone, "
            f"but is {config.task}."
        )
    if isinstance(model, PredictsLabelMaps):
        model.on_task(config.task)


def check_weights_files(config: ModelConfig) -> None:
    """Raise CheckpointError where a weights file that the configuration names is not there."""
    if config.weights not in (BUNDLED, PRETRAINED, NONE) and not _reads_weights(config):
        require_file(_weights_file(config), "model.weights")
    if config.backbone_weights is not None:
        require_file(config.backbone_weights, "model.backbone_weights")


def size_of(model: ModelConfig) -> int:
    """Return the side of the network's input in pixels."""
    return model.image_size or model.tile or _trained_image_size(model) or DEFAULT_IMAGE_SIZE


def complete(config: Config, num_images: int) -> Config:
    """Return the configuration with all defaults filled in, for a training set of `num_images` images."""
    return resolve(config, num_images, size_of(config.model), on_cpu=trains_on_cpu(config.train.device))


def with_class_head_rates(config: Config, class_names: Sequence[str]) -> Config:
    """Fill in `train.regions` if the user left it empty, for these classes.

    Class rows that the weights did not bring start from those of others, from which the rate that suits the
    pretrained rest moves them too slowly: objects are found, but not classified. Their rate is `CLASS_HEAD_LR_SCALE`
    times as high.
    """
    if config.train.regions is not None:
        return config
    given = _num_classes_in_weights(config.model)
    names = _class_names_in_weights(config.model)
    is_new = given is not None and (given != len(class_names) or (bool(names) and not same_names(names, class_names)))
    regions = dict(CLASS_HEAD_RATES) if is_new else {}
    return config.model_copy(update={"train": config.train.model_copy(update={"regions": regions})})


def kept_class_names(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the classes that `model.keep_classes` keeps; none where it is false."""
    if not config.keep_classes:
        return ()
    return weights_class_names(config, _num_classes_in_weights(config), _checkpoint(config))


def _with_added_classes(
    config: ModelConfig, options: Mapping[str, Any], class_names: Sequence[str]
) -> SegmentationModel:
    kept = kept_class_names(config)
    model = _weighted(config, options, len(kept), True)
    add_named_classes(model, kept, class_names)
    return model


def _with_classes_by_name(
    config: ModelConfig, options: Mapping[str, Any], given: Sequence[str], class_names: Sequence[str]
) -> SegmentationModel:
    model = _weighted(config, options, len(given), True)
    if not same_names(given, class_names):
        replace_classes(model, model.class_rows(), starting_classes(class_names, given))
    return model


def _class_names_in_weights(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the classes of a weights file; none where they are not known, or the head cannot change."""
    path = _checkpoint(config)
    return () if path is None else known_class_names(config, _num_classes_in_weights(config), path)


def _checkpoint(config: ModelConfig) -> Path | None:
    """Return the path of the file with the weights of a whole model; None where there is none."""
    if config.weights == BUNDLED:
        return bundled_path()
    return None if _reads_weights(config) or config.weights in (PRETRAINED, NONE) else _weights_file(config)


def _num_classes_in_weights(config: ModelConfig) -> int | None:
    """Return the number of classes of the weights' head; None for weights without a head."""
    if config.weights in (PRETRAINED, NONE):
        return None
    with naming_model_keys():
        path = bundled_path() if config.weights == BUNDLED else _weights_file(config)
        return family_of(str(model_arguments(config)["name"])).num_classes_in(path)


@contextmanager
def naming_model_keys() -> Iterator[None]:
    """Context in which errors name the configuration's keys `model.*` in the place of arguments of `build_model`."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        raise type(error)(_ARGUMENT.sub(r"`model.\1", str(error))) from error


def model_arguments(config: ModelConfig) -> Mapping[str, Any]:
    """Return the arguments of `build_model` except the number of classes, from the weights file or the configuration.

    The metadata of a weights file, if any, decide alone unless `model.backbone` is named, but for what a file can be
    fitted to, such as the number of queries, and for what changes training alone.
    """
    _check_backbone_weights(config)
    if _reads_weights(config):
        return _arguments_of_directory(config)
    changed: dict[str, Any] = {} if config.num_queries is None else {"num_queries": config.num_queries}
    channels = {
        key: value for key in ("in_chans", "pixel_mean", "pixel_std") if (value := getattr(config, key)) is not None
    }
    metadata = _metadata(config)
    model = published(config.weights)
    if metadata is None:
        return {
            "name": config.name,
            "backbone": config.backbone or "resnet50",
            "image_size": config.image_size,
            "size": config.size or "base",
            "backbone_options": {**config.backbone_options, **channels},
            **config.options,
            **changed,
        }
    defaults = ModelConfig()
    options = {key: value for key, value in config.options.items() if key not in _OPTIONS_OF_TRAINING}
    given = {key: getattr(config, key) for key in ("name", "backbone", "size", "backbone_options")}
    for key, value in {**given, "options": options}.items():
        is_same = (model is not None or key == "name") and value == metadata.arguments.get(key)
        if value != getattr(defaults, key) and not is_same:
            raise ConfigError(
                f"`model.{key}` must be left out with `model.weights: {config.weights}`, which names the model that it "
                f"holds, but is {value!r}. Or choose other weights."
            )
    changed |= {key: value for key, value in config.options.items() if key in _OPTIONS_OF_TRAINING}
    if channels:
        changed["backbone_options"] = {**metadata.arguments.get("backbone_options", {}), **channels}
    return {**metadata.arguments, **changed}


def num_channels_of(config: ModelConfig) -> int:
    """Return the number of channels of the images."""
    return int((model_arguments(config).get("backbone_options") or {}).get("in_chans", 3))


def arguments_without_weights(config: ModelConfig, task: str = "instance") -> Mapping[str, Any]:
    """Return the same for a checkpoint that holds all weights, without backbone options that name another file."""
    arguments = {**model_arguments(config), **TASKS[task].model_options}
    options = arguments.get("backbone_options") or {}
    return {**arguments, "backbone_options": {k: v for k, v in options.items() if k not in _WEIGHTS_OPTIONS}}


def _reads_weights(config: ModelConfig) -> bool:
    """Tell whether `model.weights` is a directory or a hub's name, which the family reads itself."""
    return config.name in FAMILIES and FAMILIES[config.name].reads_weights


def _arguments_of_directory(config: ModelConfig) -> Mapping[str, Any]:
    if config.weights in (BUNDLED, PRETRAINED, NONE):
        raise ConfigError(
            f"`model.weights` must name a directory or a model of the hub with `model.name: {config.name}`, but is "
            f"`{config.weights}`."
        )
    if config.backbone is not None:
        raise ConfigError(
            f"`model.backbone` must be left out with `model.name: {config.name}`: `model.weights` names the whole "
            "model."
        )
    for key in ("num_queries", "in_chans", "pixel_mean", "pixel_std"):
        if getattr(config, key) is not None:
            raise ConfigError(
                f"`model.{key}` must be left out with `model.name: {config.name}`, whose files name it, but is "
                f"{getattr(config, key)!r}."
            )
    return {
        "name": config.name,
        "backbone": local_directory(config.weights),
        "image_size": config.image_size,
        "size": config.size or "base",
        "backbone_options": config.backbone_options,
        **config.options,
    }


def _check_backbone_weights(config: ModelConfig) -> None:
    """Refuse two sources of the backbone's weights."""
    if config.backbone_weights is None:
        return
    if config.weights not in (PRETRAINED, NONE):
        raise ConfigError(
            f"`model.backbone_weights` must be left out with `model.weights: {config.weights}`, which holds the "
            "backbone too. Or leave out `model.weights`."
        )
    for key in _WEIGHTS_OPTIONS & config.backbone_options.keys():
        raise ConfigError(f"`model.backbone_options.{key}` must be left out with `model.backbone_weights`: use one.")


def _weighted(
    config: ModelConfig, options: Mapping[str, Any], num_classes: int, with_weights: bool
) -> SegmentationModel:
    arguments = {**model_arguments(config), **options}
    if config.weights == BUNDLED:
        return load_bundled(num_classes, arguments=arguments)
    from_file = config.backbone_weights if with_weights else None
    reads_weights = _reads_weights(config)
    model = published(config.weights)
    needs_timm = config.weights == PRETRAINED or (model is not None and model.has_timm_encoder)
    pretrained = with_weights and (needs_timm or reads_weights) and from_file is None
    with naming_model_keys():
        built = build_model(num_classes=num_classes, pretrained=pretrained, backbone_weights=from_file, **arguments)
        if with_weights and config.weights not in (PRETRAINED, NONE) and not reads_weights:
            load_weights(built, _weights_file(config))
    return built


def _trained_image_size(config: ModelConfig) -> int | None:
    if config.weights == BUNDLED:
        return BUNDLED_IMAGE_SIZE
    image_size_in = FAMILIES[config.name].image_size_in if config.name in FAMILIES else None
    if image_size_in is not None:
        with naming_model_keys():
            return image_size_in(str(model_arguments(config)["backbone"]))
    metadata = _metadata(config)
    return None if metadata is None else metadata.image_size


def _weights_file(config: ModelConfig) -> Path:
    """Return the path of the weights, fetched first where they are elsewhere; a directory's or hub's name as it is."""
    if _reads_weights(config):
        return Path(local_directory(config.weights))
    family = FAMILIES.get(config.name)
    takes_directories = family is not None and family.read_directory is not None
    return local_weights(config.weights, _merged_run, takes_directories=takes_directories)


def _merged_run(folder: Path, out: Path) -> Path:
    """Write the merged checkpoint of a run of the hub, whose files are in `folder`, and return its path."""
    config, adapter = check_shared_config(folder), folder / ADAPTER_FILE
    class_names = class_names_in(adapter)
    model = build_base(config, len(class_names), class_names=class_names)
    peft.load_adapter(model, adapter)
    try:
        merge_deltas(model, config.model.frozen_precision)
    except PlanError as error:
        raise CheckpointError(
            f"`model.weights` names a run of the hub whose deltas cannot be merged into weights: {error} Predict with "
            "the run itself, or start from its base."
        ) from error
    metadata = CheckpointMetadata(arguments_without_weights(config.model, config.task), size_of(config.model))
    save_checkpoint(model, out, metadata, class_names=class_names)
    return out


def _metadata(config: ModelConfig) -> CheckpointMetadata | None:
    """Return the metadata of the configuration's weights; None without a file, or for one without metadata."""
    if config.weights == BUNDLED:
        return read_checkpoint_metadata(bundled_path())
    model = published(config.weights)
    if model is not None:
        size = config.image_size or model.image_size
        return CheckpointMetadata({"name": model.family, **model.arguments, "image_size": size}, model.image_size)
    if config.weights in (PRETRAINED, NONE) or config.backbone is not None:
        return None
    path = _weights_file(config)
    return _directory_metadata(config, path) if is_weights_directory(path) else read_checkpoint_metadata(path)


def _directory_metadata(config: ModelConfig, path: Path) -> CheckpointMetadata:
    read = family_of(config.name).read_directory
    if read is None:
        raise ConfigError(
            f"`model.backbone` must be named, with its options, for `model.name: {config.name}` and the directory "
            f"`model.weights: {config.weights}`. Or give the `model.name` of the directory's model, or `transformers`."
        )
    return read(path)


def _checkpoint_activations(model: SegmentationModel) -> None:
    try:
        model.set_activation_checkpointing()
    except ConfigError as error:
        raise ConfigError(f"`model.activation_checkpointing` must be false: {error}") from error


def describe_base(model: SegmentationModel, config: ModelConfig) -> str:
    """Return a short description such as `mask_dino over resnet50 (pretrained)`."""
    return f"{config.name} over {model.encoder_name} ({config.backbone_weights or config.weights})"
