"""Files of exported models: ONNX, and torch's own format, both with a description as metadata."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from vispeft.errors import CheckpointError, describe_io_error, writing
from vispeft.models.exported.description import INPUT, GraphDescription, output_names
from vispeft.models.exported.quiet import quiet

ONNX = ".onnx"
TORCH = ".pt2"
ENDINGS = (ONNX, TORCH)
Graph = Callable[[Tensor], tuple[Tensor, ...]]
"""Function of images [B, C, H, W] that gives the outputs of an exported model, on the CPU."""
# Gelu is of version 20, GridSample of version 16
_OPSET = 20
# bytes of weights, above which they stand in a file of their own: a message of protobuf has at most 2 GB
_LARGEST_WEIGHTS = 1_900_000_000
_METADATA_FILE = "vispeft.json"


def require_onnx() -> None:
    """Raise CheckpointError where a package of the extra `onnx` is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _import(package)


def write_onnx(program: ExportedProgram, description: GraphDescription, path: Path) -> None:
    """Write an ONNX file in standard operators. Weights of about 2 GB and more go to `<name>.data` beside it.

    Raises CheckpointError for a graph that has no standard operators.
    """
    exported = _in_onnx(program)
    _check_standard(exported.model)
    exported.model.metadata_props.update(description.to_metadata())
    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    with writing(path, CheckpointError):
        exported.save(path, external_data=num_bytes > _LARGEST_WEIGHTS)


def write_program(program: ExportedProgram, description: GraphDescription, path: Path) -> None:
    """Write a file that `torch.export.load` reads, with the description as an extra file, vispeft.json."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={_METADATA_FILE: json.dumps(description.to_metadata())})
    with writing(path, CheckpointError):
        path.write_bytes(buffer.getbuffer())


def read_onnx(path: Path) -> tuple[Graph, GraphDescription]:
    """Return an ONNX model of `vispeft export` as a function, and its description.

    Raises CheckpointError for a file that is missing, damaged or of another program.
    """
    if not path.is_file():
        raise CheckpointError(f"`{path}` must be a model of `vispeft export`, but does not exist.")
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # 4: fatal ones alone; others are raised
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # each fault of a file has a class of its own in the runtime
        reason = describe_io_error(error)
        raise CheckpointError(
            f"`{path}` cannot be read as an ONNX model ({reason}). Export the run again; weights in a file "
            f"{path.name}.data must stand beside it."
        ) from error
    description = GraphDescription.from_metadata(session.get_modelmeta().custom_metadata_map, path)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        arrays = session.run(None, {INPUT: images.float().cpu().numpy()})
        return tuple(torch.from_numpy(array) for array in arrays)

    return run, description


def read_own_program(path: Path) -> Graph:
    """Return a program that this process wrote as a function.

    Not for files of others: torch unpickles parts of them, which would run any code in them.
    """
    module = torch.export.load(path).module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = module(images)
        return outputs

    return run


# the type of the exporter's result is not public
def _in_onnx(program: ExportedProgram) -> Any:
    _import("onnxscript")
    # the exporter traces attention once more, and must find the memory layout of the program
    with quiet(), sdpa_kernel(SDPBackend.MATH):
        try:
            return torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=list(output_names(len(program.graph_signature.user_outputs))),
                # the name of the axis, which is s1 or the like in the program
                dynamic_shapes={INPUT: {0: "batch"}},
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            # the cause of the exporter's error names the operator
            reason = describe_io_error(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise CheckpointError(
                f"The model cannot be written in ONNX operators ({reason}). Export to a {TORCH} file instead."
            ) from error


# classes of onnx_ir, a package of the extra `onnx`
def _check_standard(model: Any) -> None:
    """Refuse a graph with operators or functions that are not ONNX's own."""
    others = {
        f"{node.domain}::{node.op_type}" for node in model.graph.all_nodes() if node.domain not in ("", "ai.onnx")
    }
    others |= {f"{domain}::{name}" for domain, name, _ in model.functions}
    if others:
        raise CheckpointError(
            f"The graph must have standard ONNX operators alone, but has {', '.join(sorted(others)[:5])}. "
            f"Export to a {TORCH} file instead."
        )


# modules that may not be installed have no types
def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise CheckpointError(
            f"ONNX models need the package `{package}`, which is not installed: pip install 'vispeft[onnx]'."
        ) from error
