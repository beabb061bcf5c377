"""Commands that need no model do not wait for torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from vispeft.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"torch", "timm", "torchvision", "albumentations"} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.json"
    square = [1, 1, 9, 1, 9, 9, 1, 9]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 20} for i in range(4)]
    document = {
        "images": images,
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "segmentation": [square], "bbox": [1, 1, 8, 8], "area": 64}
            for i in range(4)
        ],
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "command",
    [
        *("--help", "train --help", "models", "models mask_dino_r50", "methods", "schema"),
        *("data check", "data stats", "data split", "evaluate"),
    ],
)
def test_command__imports_no_torch(command: str, annotations: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.json"
    entry = {"image_id": 0, "category_id": 1, "score": 0.5, "bbox": [1, 1, 8, 8]}
    predictions.write_text(json.dumps([{**entry, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}]))
    words = {
        "data check": [annotations, "--images", tmp_path],
        "data stats": [annotations],
        "data split": [annotations, "--out", tmp_path / "split"],
        "evaluate": ["--predictions", predictions, "--annotations", annotations],
    }
    arguments = [*command.split(), *map(str, words.get(command, []))]
    run = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == "[]", run.stderr
