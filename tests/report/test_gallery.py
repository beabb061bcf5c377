import json

import pytest

from vispeft.report.gallery import Gallery, select_predictions
from vispeft.report.run_contents import read_run


@pytest.fixture
def gallery(run_dir):
    run = read_run(run_dir)
    selected = select_predictions("run", run.predictions, run.ground_truth, None)
    return Gallery(run.ground_truth, run.images_path, [selected])


def test_select_predictions__as_many_as_annotations_but_at_most_from_one_half(run_dir):
    run = read_run(run_dir)
    (result,) = run.predictions
    scored = [result | {"score": score} for score in (0.4, 0.3, 0.2, 0.1)]
    assert select_predictions("run", scored, run.ground_truth, None).threshold == 0.3
    assert select_predictions("run", run.predictions, run.ground_truth, None).threshold == 0.5
    kept = select_predictions("run", scored, run.ground_truth, 0.15).by_image
    assert [one["score"] for one in kept[result["image_id"]]] == [0.4, 0.3, 0.2]


def test_gallery__worst_images_have_errors(gallery):
    assert [image["id"] for image in gallery.worst_images(6)] == [1]
    assert gallery.worst_images(0) == []
    assert [image["id"] for image in gallery.spread_images(6)] == [0, 1]


def test_gallery__a_detection_in_a_crowd_is_no_false_positive(run_dir):
    path = run_dir / "annotations_val.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    run = read_run(run_dir)
    gallery = Gallery(
        run.ground_truth, run.images_path, [select_predictions("run", run.predictions, run.ground_truth, 0)]
    )
    items, matching = gallery.detections(run.ground_truth.images[0], gallery.runs[0])
    assert (items, matching.num_false_positives) == ([], 0)
