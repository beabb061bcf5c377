from __future__ import annotations

from pathlib import Path

import pytest

from vispeft.errors import CheckpointError
from vispeft.models.exported.description import GraphDescription, output_names

DESCRIPTION = GraphDescription(
    model="eomt over vit",
    class_names=("nut", 'Obst "ü"'),
    category_ids=(7, 3),
    image_size=60,
    padded_size=64,
    tile=None,
    tile_overlap=0.25,
    pixel_mean=(1.5, 2.0, 3.0),
    pixel_std=(1.0, 1.0, 0.1),
    num_queries=8,
    class_scores="softmax",
    score_threshold=0.5,
    max_detections=300,
    deltas="merged",
    adapter_sha256="ab",
    vispeft_version="0.1",
)


def test_from_metadata__is_the_inverse_of_to_metadata() -> None:
    metadata = DESCRIPTION.to_metadata()
    assert all(isinstance(text, str) for text in metadata.values())
    assert GraphDescription.from_metadata({**metadata, "other": "text"}, Path("x.onnx")) == DESCRIPTION


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": "[nut"}, r"`x\.onnx` has damaged metadata"),
        ({"class_names": "3"}, r"`x\.onnx` has damaged metadata"),
        ({"class_scores": '"relu"'}, r"`x\.onnx` has damaged metadata"),
    ],
)
def test_from_metadata__refuses_damaged_texts(changed: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GraphDescription.from_metadata({**DESCRIPTION.to_metadata(), **changed}, Path("x.onnx"))


def test_from_metadata__names_what_is_lacking() -> None:
    metadata = DESCRIPTION.to_metadata()
    del metadata["tile"]
    with pytest.raises(CheckpointError, match="its metadata lack tile"):
        GraphDescription.from_metadata(metadata, Path("x.onnx"))


def test_output_names__leaves_boxes_out_of_three() -> None:
    assert output_names(3) == ("class_logits", "mask_embeddings", "mask_features")
    assert output_names(4)[1] == "boxes"
