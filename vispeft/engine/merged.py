"""Plain checkpoints of models whose deltas are merged into the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vispeft import peft
from vispeft.models import SegmentationModel
from vispeft.models.checkpoint_metadata import CheckpointMetadata, save_with_metadata


def merge_deltas(model: SegmentationModel, frozen_precision: str) -> None:
    """Merge the deltas of a model, in place; frozen weights in a lower precision become float32."""
    if frozen_precision == "bf16":
        # before the update is added, which bf16 would round
        model.float()
    peft.merge(model)
    peft.dequantize(model)


def save_checkpoint(
    model: SegmentationModel, out: Path, metadata: CheckpointMetadata, *, class_names: Sequence[str]
) -> None:
    """Write a model without deltas as one safetensors file that names the model and its classes."""
    save_with_metadata(model.state_dict(), out, metadata, notes={"class_names": json.dumps(class_names)})
