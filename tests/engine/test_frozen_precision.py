"""Runs over frozen weights in lower precisions: train, resume, evaluate, predict and merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vispeft.cli.app import app
from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, train_run
from vispeft.engine.build import build_base
from vispeft.engine.estimate import estimate
from vispeft.engine.predict import predict
from vispeft.engine.saved_runs import write_merged
from vispeft.errors import CheckpointError, ConfigError
from vispeft.peft import load_adapter
from vispeft.peft.quantization.maps import QuantizedConv2d, QuantizedLinear

PRECISIONS = ("bf16", "int8", "nf4")


@pytest.fixture(scope="module", params=PRECISIONS)
def run(request: pytest.FixtureRequest, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run over frozen weights in a lower precision."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / request.param)
    train_run(parse_config(tiny, [f"model.frozen_precision={request.param}"]), directory)
    return directory
