"""Runs that `vispeft push` has put on the hub, in the place of run directories."""

from __future__ import annotations

from pathlib import Path

from vispeft.config import Config, load_config
from vispeft.config.strict_yaml import read_yaml
from vispeft.engine.weights_source import is_shared
from vispeft.errors import CheckpointError
from vispeft.io.hub import HubName, hub_file, list_files
from vispeft.io.run_layout import ADAPTER_FILE, CATEGORIES_FILE, CONFIG_FILE

# keys of `model.backbone_options` with which timm would read other files
_FILE_OPTIONS = {"cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}


def fetch_run(source: str) -> Path:
    """Return the folder of a run of the hub with its adapter, configuration and categories, fetched first.

    Raises CheckpointError where the repository is no run, or its configuration would read files of this machine or
    import modules.
    """
    name = HubName.parse(source)
    if name.file is not None:
        raise CheckpointError(f"`{name}` must name a run of the hub, but names a file of it: hf://{name.repository}.")
    files = list_files(name)
    lacking = [file for file in (ADAPTER_FILE, CONFIG_FILE, CATEGORIES_FILE) if file not in files]
    if lacking:
        raise CheckpointError(
            f"{name} must be a run that `vispeft push` has shared, but lacks {', '.join(lacking)}. For weights, name "
            "it by `model.weights`."
        )
    for file in (ADAPTER_FILE, CATEGORIES_FILE):
        hub_file(name, file)
    folder = hub_file(name, CONFIG_FILE).parent
    check_shared_config(folder)
    return folder


def check_shared_config(folder: Path) -> Config:
    """Return the configuration of a run that others made.

    Raises CheckpointError where it would import modules or read files of this machine; before anything is done.
    """
    path = folder / CONFIG_FILE
    raw = read_yaml(path)
    plan = raw.get("peft")
    # before it is validated, which imports them
    if isinstance(plan, dict) and plan.get("modules"):
        raise _refused(path, f"imports the Python modules {plan['modules']} (`peft.modules`)")
    config = load_config(path)
    model = config.model
    # other names are those of transformers' hub, unless they are here
    is_here = model.name != "transformers" or Path(model.weights).expanduser().exists()
    if not is_shared(model.weights) and is_here:
        raise _refused(path, f"reads the weights {model.weights} (`model.weights`)")
    if model.backbone_weights is not None:
        raise _refused(path, f"reads the weights file {model.backbone_weights} (`model.backbone_weights`)")
    for key in sorted(_FILE_OPTIONS & model.backbone_options.keys()):
        raise _refused(path, f"sets `model.backbone_options.{key}`, by which timm reads other files")
    return config


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The configuration {path} comes from the hub and {reason}. It is not used: read it, then copy the files to a "
        "directory of your own and name that."
    )
