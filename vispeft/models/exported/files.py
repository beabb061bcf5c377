"""Files of exported models: ONNX, and torch's own format, both with a description as metadata."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from vispeft.errors import CheckpointError
from vispeft.io.atomic import replacing
from vispeft.models.exported.description import INPUT, GraphDescription
from vispeft.models.exported.trace import output_names

ONNX = ".onnx"
TORCH = ".pt2"
ENDINGS = (ONNX, TORCH)
Graph = Callable[[Tensor], tuple[Tensor, ...]]
"""Function of images [B, 3, H, W] that gives the outputs of an exported model."""
# GridSample of four dimensions is of version 16, Gelu of version 20
_OPSET = 20
_LARGEST_MESSAGE = 2**31 - 1
_METADATA_FILE = "vispeft.json"


def require_onnx() -> None:
    """Raise CheckpointError where a package of the extra `onnx` is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _import(package)


def write_onnx(program: ExportedProgram, description: GraphDescription, path: Path) -> None:
    """Write an ONNX file in standard operators. Weights of 2 GB and more go to `<name>.data` beside it."""
    onnx = _import("onnx")
    _import("onnxscript")
    # the exporter traces attention once more, and must find the memory layout of the program
    with _quiet(), sdpa_kernel(SDPBackend.MATH):
        exported: Any = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=list(output_names(len(program.graph_signature.user_outputs))),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    model = exported.model_proto
    _check_standard(model)
    for name, text in description.to_metadata().items():
        model.metadata_props.add(key=name, value=text)
    with replacing(path, CheckpointError) as partial:
        if model.ByteSize() > _LARGEST_MESSAGE:
            onnx.save(model, partial, save_as_external_data=True, location=f"{path.name}.data")
        else:
            partial.write_bytes(model.SerializeToString())


def write_program(program: ExportedProgram, description: GraphDescription, path: Path) -> None:
    """Write a file that `torch.export.load` reads."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_METADATA_FILE: json.dumps(description.to_metadata())})
    with replacing(path, CheckpointError) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_graph(path: Path) -> tuple[Graph, GraphDescription]:
    """Return an exported model as a function, on the CPU or, with an ONNX runtime for it, on the GPU.

    Raises CheckpointError for a file that is missing, damaged or of another program.
    """
    if not path.is_file():
        raise CheckpointError(f"`{path}` must be a model that `vispeft export` wrote, but does not exist.")
    return _read_onnx(path) if path.suffix == ONNX else _read_program(path)


def _read_onnx(path: Path) -> tuple[Graph, GraphDescription]:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # 3: errors alone
    options.log_severity_level = 3
    known = runtime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    try:
        session = runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        # each fault of a file has a class of its own in the runtime
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"`{path}` cannot be read as an ONNX model ({reason}). Export it again.") from error
    description = GraphDescription.from_metadata(session.get_modelmeta().custom_metadata_map, path)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        arrays = session.run(None, {INPUT: images.float().cpu().numpy()})
        return tuple(torch.from_numpy(array) for array in arrays)

    return run, description


def _read_program(path: Path) -> tuple[Graph, GraphDescription]:
    extra = {_METADATA_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        # torch reads archives, pickles and JSON here, each with errors of its own
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"`{path}` cannot be read as a program of torch.export ({reason}). Export it again."
        ) from error
    if not extra[_METADATA_FILE]:
        raise CheckpointError(f"`{path}` must be a model that `vispeft export` wrote, but has no {_METADATA_FILE}.")
    description = GraphDescription.from_metadata(json.loads(extra[_METADATA_FILE]), path)
    module = program.module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = module(images.float().cpu())
        return outputs

    return run, description


def _check_standard(model: Any) -> None:
    """Refuse a graph with operators or functions that are not ONNX's own."""
    others = {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    others |= {f"{function.domain}::{function.name}" for function in model.functions}
    if others:
        raise CheckpointError(
            f"The graph must have standard ONNX operators alone, but has {', '.join(sorted(others)[:5])}. "
            "Export to a .pt2 file instead, or take the method out that brings them."
        )


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise CheckpointError(
            f"ONNX models need the package `{package}`, which is not installed: pip install 'vispeft[onnx]'."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without the exporter's messages, of which none is for a user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
