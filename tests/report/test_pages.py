import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vispeft.errors import DataError
from vispeft.report import write_comparison, write_report
from vispeft.report.formats import NOTHING

VOID = {"meta", "input"}


class Outline(HTMLParser):
    """Tags opened and not closed, addresses, texts and picture sources of a page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.sources, self.links, self.texts, self.ids = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._keep(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self._keep(tag, attrs)

    def _keep(self, tag, attrs):
        place = self.sources if tag in ("img", "image", "script", "link") else self.links
        place += [value for name, value in attrs if name in ("href", "src", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_write_report__is_one_self_contained_page(run_dir):
    page = write_report(run_dir).read_text()
    outline = Outline(page)
    assert outline.open == []
    # two images, and the worst one again
    assert len(outline.sources) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in outline.sources)
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert len(set(outline.ids)) == len(outline.ids)
    assert not re.search(r"https?://|url\(|@import", page)


def test_write_report__marks_true_positives_and_false_negatives(run_dir):
    page = write_report(run_dir).read_text()
    assert "1 of 1 detected, 0 false positives" in page
    assert "0 of 1 detected, 0 false positives" in page
    assert "score 0.90, true positive, IoU 1.00" in page
    assert page.count('class="off"') == 2  # the false negative, in its image and among the worst


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "vispeft merge RUN --out merged.safetensors"),
        ({"merges_into": "directory"}, "vispeft merge RUN --out merged"),
        ({"merges_into": None}, None),
        # a summary of an earlier version
        ({"methods": ["lora", "adapter"]}, None),
    ],
)
def test_write_report__recommends_a_merge_that_is_possible(make_run, tmp_path, changes, advice):
    run = make_run(tmp_path / "run", changes=changes)
    texts = Outline(write_report(run).read_text()).texts
    merges = [text for text in texts if text.startswith("vispeft merge")]
    assert merges == ([] if advice is None else [advice.replace("RUN", str(run))])
    assert ("Some of its methods do not merge" in " ".join(texts)) == (advice is None)


def test_write_report__pictures_are_of_bounded_size(make_run, tmp_path):
    images = tmp_path / "images"
    run = make_run(tmp_path / "run", images=images)
    noise = np.random.default_rng(1).integers(0, 255, (2000, 3000, 3), dtype=np.uint8)
    for idx in range(2):
        Image.fromarray(noise).save(images / f"{idx}.png", compress_level=1)
    outline = Outline(write_report(run).read_text())
    assert all(20_000 < len(source) <= 160_100 for source in outline.sources)


def test_write_report__shows_the_metrics_of_the_summary(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    texts = Outline(write_report(run_dir).read_text()).texts
    for shown in (f"{summary['segm']['AP']:.3f}", "3.21 %", "121 kB", "61 s", "3 GB", "vispeft train 'a b.yaml'"):
        assert shown in texts
    assert NOTHING in texts


def test_write_report__escapes_names_from_the_data(run_dir):
    page = write_report(run_dir).read_text()
    assert "<b>box</b>" not in page
    assert "disk &amp; &lt;b&gt;box&lt;/b&gt;" in page


def test_write_report__draws_curves_without_missing_values(run_dir):
    page = write_report(run_dir).read_text()
    # the loss; precision by recall at three thresholds; calibration and the ideal line
    assert page.count("<polyline") == 1 + 3 + 2
    assert "loss ends at 1.25" in page
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", " ".join(Outline(page).texts[3:-1]))


def test_write_report__of_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {name: mask_dino}\n")
    page = write_report(tmp_path).read_text()
    assert "No pictures" in page
    assert "mask_dino" in page


def test_write_report__missing_images_are_named(run_dir):
    (run_dir / "images" / "0.png").unlink()
    page = write_report(run_dir).read_text()
    assert "0.png does not exist" in page
    assert len(Outline(page).sources) == 2
    assert page.count("Not shown") == 1


def test_write_report__images_outside_the_folder_are_not_read(run_dir):
    path = run_dir / "annotations_val.json"
    document = json.loads(path.read_text())
    (run_dir / "images" / "0.png").rename(run_dir / "0.png")
    document["images"][0]["file_name"] = "../0.png"
    path.write_text(json.dumps(document))
    page = write_report(run_dir).read_text()
    assert "`../0.png` is outside of the image folder" in page
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


def test_write_comparison__has_a_row_and_a_panel_per_run(make_run, tmp_path):
    images = tmp_path / "images"
    runs = {
        name: make_run(tmp_path / name, images=images, score=score) for name, score in (("lora", 0.9), ("full", 0.2))
    }
    write_report(runs["lora"])
    outline = Outline(write_comparison(runs, tmp_path / "comparison.html").read_text())
    assert outline.open == []
    assert [link for link in outline.links if not link.startswith("#")] == ["lora/report.html"]
    # each picture is embedded once and reused under the outlines of each run
    assert len(outline.sources) == 2
    assert sum(link.startswith("#image-") for link in outline.links) == 2 * 2
    assert outline.texts.count("full") >= 3


def test_write_comparison__begins_with_the_conclusion(make_run, tmp_path):
    runs = {name: make_run(tmp_path / name, images=tmp_path / "images") for name in ("lora", "full")}
    texts = Outline(write_comparison(runs, tmp_path / "comparison.html").read_text()).texts
    ap = json.loads((runs["lora"] / "summary.json").read_text())["segm"]["AP"]
    sentence = next(text for text in texts if "highest AP" in text)
    assert f"{ap:.3f}" in sentence
    assert "2 images are too few to distinguish 2 configurations" in sentence
    assert any("trained once" in text for text in texts)
    assert texts.index(sentence) < texts.index("Learning curves")
    assert "95 % interval" in texts


def test_write_comparison__sorts_by_value_not_by_text(make_run, tmp_path):
    sizes = {"a": 900, "b": 5_000_000, "c": 70_000}
    runs = {name: make_run(tmp_path / name, changes={"adapter_bytes": size}) for name, size in sizes.items()}
    page = write_comparison(runs, tmp_path / "comparison.html").read_text()
    assert all(re.search(rf'data-order="{size}(\.0)?"', page) for size in sizes.values())


def test_write_comparison__runs_on_other_annotations_share_no_pictures(make_run, tmp_path):
    runs = {"a": make_run(tmp_path / "a"), "b": make_run(tmp_path / "b", name="other")}
    assert "not scored on the same" in write_comparison(runs, tmp_path / "c.html").read_text()


def test_write_comparison__needs_runs(tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        write_comparison({}, tmp_path / "c.html")


def test_write_report__shows_all_segments_of_a_label_map(make_run, tmp_path):
    values = {"mIoU": 0.5, "pixel_accuracy": 0.5, "mean_accuracy": 0.5}
    text = write_report(make_run(tmp_path, score=0.01, changes={"semantic": values})).read_text(encoding="utf-8")
    assert "All predicted segments are shown." in text
    assert "1 of 1 detected, 0 false positives" in text
    assert "from a score of" not in text
