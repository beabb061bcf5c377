import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vispeft.errors import DataError
from vispeft.evaluation import evaluate_coco, write_results
from vispeft.report import write_comparison, write_report
from vispeft.report.formats import NOTHING

VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Tags opened and not closed, addresses, texts and picture sources of a page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.sources, self.links, self.texts = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "data")]
        self.links += [value for name, value in attrs if name in ("href", "action")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def _write_run(path, *, images=None, name="disk & <b>box</b>", score=0.9):
    """A run directory as `train` leaves it, on two small images."""
    images = images or path / "images"
    images.mkdir(parents=True, exist_ok=True)
    path.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), dtype=np.uint8)
    for idx in range(2):
        Image.fromarray(pixels[idx]).save(images / f"{idx}.png")
    polygon = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]
    annotation = {"category_id": 7, "segmentation": [polygon], "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
    annotations = {
        "images": [{"id": idx, "file_name": f"{idx}.png", "height": 48, "width": 64} for idx in range(2)],
        "categories": [{"id": 7, "name": name}, {"id": 9, "name": "unseen"}],
        "annotations": [annotation | {"id": 1, "image_id": 0}, annotation | {"id": 2, "image_id": 1}],
    }
    (path / "annotations_val.json").write_text(json.dumps(annotations))
    result = {"image_id": 0, "category_id": 7, "segmentation": [polygon], "bbox": [10, 10, 30, 20], "score": score}
    write_results(path / "predictions_val.json", [result])
    metrics = evaluate_coco(path / "annotations_val.json", path / "predictions_val.json").to_dict()
    summary = {"methods": ["lora"], "trainable_percent": 3.21, "adapter_bytes": 123_456, "train_seconds": 61.4}
    summary |= {"steps": 200, "peak_memory_bytes": 3 * 2**30, "device": "cpu"}
    (path / "summary.json").write_text(json.dumps(summary | metrics))
    (path / "environment.json").write_text(json.dumps({"seed": 3, "command_line": ["vispeft", "train", "a b.yaml"]}))
    (path / "config.yaml").write_text(f"data: {{val: {{images: '{images}'}}}}\nmodel: {{name: mask_dino}}\n")
    lines = [{"step": step, "split": "train", "loss": 5.0 / step, "loss_mask": None} for step in range(1, 5)]
    lines.append({"step": 4, "split": "val", "segm/AP": 0.25, "bbox/AP": 0.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "spl')
    return path


@pytest.fixture
def run_dir(tmp_path):
    return _write_run(tmp_path / "run")


def test_write_report__is_one_self_contained_page(run_dir):
    page = write_report(run_dir).read_text()
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in outline.sources)
    assert outline.links == []
    assert not re.search(r"https?://|url\(|@import", page)


def test_write_report__shows_the_figures_of_the_summary(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    texts = Outline(write_report(run_dir).read_text()).texts
    for shown in (f"{summary['segm']['AP']:.3f}", "3.21 %", "121 kB", "61 s", "3 GB", "vispeft train 'a b.yaml'"):
        assert shown in texts
    assert NOTHING in texts


def test_write_report__escapes_what_the_data_says(run_dir):
    page = write_report(run_dir).read_text()
    assert "<b>box</b>" not in page
    assert "disk &amp; &lt;b&gt;box&lt;/b&gt;" in page


def test_write_report__draws_curves_without_missing_values(run_dir):
    page = write_report(run_dir).read_text()
    assert page.count("<polyline") == 3
    assert "loss 5 at step 1" in page
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", " ".join(Outline(page).texts[3:]))


def test_write_report__of_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {name: mask_dino}\n")
    page = write_report(tmp_path).read_text()
    assert "No pictures" in page
    assert "mask_dino" in page


def test_write_report__images_that_are_gone_are_named(run_dir):
    (run_dir / "images" / "0.png").unlink()
    page = write_report(run_dir).read_text()
    assert "0.png does not exist" in page
    assert len(Outline(page).sources) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "[]", "summary.json` must hold a JSON object"),
        ("summary.json", "{", "summary.json` is not valid JSON"),
        ("predictions_val.json", "{}", "must hold a list of COCO results"),
        ("annotations_val.json", "[]", "must hold an object"),
        ("config.yaml", "a: [", "config.yaml` is not valid YAML"),
    ],
)
def test_write_report__broken_files_are_named(run_dir, name, text, message):
    (run_dir / name).write_text(text)
    with pytest.raises(DataError, match=message):
        write_report(run_dir)


def test_write_report__needs_a_run_directory(tmp_path):
    with pytest.raises(DataError, match=r"must be a run directory, but has no config\.yaml"):
        write_report(tmp_path)


def test_write_comparison__has_a_row_and_a_panel_per_run(tmp_path):
    images = tmp_path / "images"
    runs = {
        name: _write_run(tmp_path / name, images=images, score=score) for name, score in (("lora", 0.9), ("full", 0.2))
    }
    write_report(runs["lora"])
    outline = Outline(write_comparison(runs, tmp_path / "comparison.html").read_text())
    assert outline.open == []
    assert outline.links == ["lora/report.html"]
    assert len(outline.sources) == 2 * 3
    assert outline.texts.count("full") >= 3


def test_write_comparison__runs_on_other_annotations_share_no_pictures(tmp_path):
    runs = {"a": _write_run(tmp_path / "a"), "b": _write_run(tmp_path / "b", name="other")}
    assert "not scored on the same" in write_comparison(runs, tmp_path / "c.html").read_text()


def test_write_comparison__needs_runs(tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        write_comparison({}, tmp_path / "c.html")
