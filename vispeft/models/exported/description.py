"""Description of an exported model, which its file holds as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from vispeft.errors import CheckpointError, describe_io_error

INPUT = "images"
_OUTPUTS = ("class_logits", "boxes", "mask_embeddings", "mask_features")


def output_names(num_outputs: int) -> tuple[str, ...]:
    """Return the names of a graph's outputs, in their order. num_outputs: three without boxes, four with them"""
    return _OUTPUTS if num_outputs == len(_OUTPUTS) else tuple(name for name in _OUTPUTS if name != "boxes")


@dataclass(frozen=True)
class GraphDescription:
    """All that a program needs beside the graph: input rule, classes, limits, versions.

    model: short description, such as "mask_dino over resnet50 (pretrained)"
    class_names, category_ids: by contiguous class index; ids as predictions are written
    image_size: longer side of an image or tile in pixels, which is padded at the right and bottom to a square
    padded_size: side of that square, the height and width of the graph's input
    tile, tile_overlap: division of larger images into tiles, as `model.tile`; tile is None for whole images
    pixel_mean, pixel_std: of each channel, RGB for three, in 0..255; the padding is zero after normalisation
    class_scores: "sigmoid", or "softmax" with "no object" as the last class
    score_threshold, max_detections: limits of instances, unless others are given
    deltas: "none", "merged" into the weights, or "in the graph" for methods that do not merge
    adapter_sha256: of the run's adapter file; empty for a published model
    vispeft_version: of the program that wrote the file
    """

    model: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: int
    padded_size: int
    tile: int | None
    tile_overlap: float
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    num_queries: int
    class_scores: Literal["sigmoid", "softmax"]
    score_threshold: float
    max_detections: int
    deltas: str
    adapter_sha256: str
    vispeft_version: str

    def to_metadata(self) -> dict[str, str]:
        """Return each field as JSON text, by its name."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> GraphDescription:
        """Return the description in a file's metadata. path: of the file, for errors"""
        names = [field.name for field in fields(cls)]
        lacking = [name for name in names if name not in metadata]
        if lacking:
            raise CheckpointError(
                f"`{path}` must be a model of `vispeft export`, but its metadata lack {', '.join(lacking[:3])}. "
                "Export the run again."
            )
        try:
            values = {name: json.loads(metadata[name]) for name in names}
            return TypeAdapter(cls).validate_python(values)
        except ValueError as error:
            reason = describe_io_error(error)
            raise CheckpointError(f"`{path}` has damaged metadata ({reason}). Export the run again.") from error
