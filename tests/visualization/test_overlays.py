import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from vispeft.errors import VispeftError
from vispeft.structures import Instances
from vispeft.visualization.overlays import draw_instances


def _instances(masks, scores=None, labels=None):
    encoded = [mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    rles = [{"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode()} for rle in encoded]
    scores = [0.9] * len(rles) if scores is None else scores
    labels = [0] * len(rles) if labels is None else labels
    return Instances(torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), torch.zeros(len(rles), 4), rles)


def _disks(height, width, num, seed=0):
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centres = generator.random((num, 2)) * (height, width)
    radius = max(1.0, min(height, width) / 12)
    return [np.hypot(rows - y, columns - x) < radius for y, x in centres]


def test_draw_instances__leaves_everything_else_alone():
    image = np.random.default_rng(0).integers(0, 255, (600, 700, 3), dtype=np.uint8)
    mask = np.zeros((600, 700), dtype=bool)
    mask[100:300, 200:400] = True
    picture = np.asarray(draw_instances(image, _instances([mask]), ["a"], show_scores=False))
    assert (picture[~mask] == image[~mask]).all()
    assert (picture[mask] != image[mask]).any(axis=-1).mean() > 0.99


def test_draw_instances__draws_only_what_reaches_the_threshold():
    image = np.zeros((600, 700, 3), dtype=np.uint8)
    masks = _disks(600, 700, 4)
    instances = _instances(masks, scores=[0.9, 0.7, 0.5, 0.49])
    picture = np.asarray(draw_instances(image, instances, ["a"], threshold=0.5, show_scores=False)).any(axis=-1)
    assert (picture == (masks[0] | masks[1] | masks[2])).all()


def test_draw_instances__classes_differ_in_colour():
    masks = np.zeros((3, 600, 600), dtype=bool)
    for idx in range(3):
        masks[idx, 100:200, 200 * idx : 200 * idx + 100] = True
    image = np.zeros((600, 600, 3), dtype=np.uint8)
    picture = draw_instances(image, _instances(masks, labels=[0, 1, 2]), ["a", "b", "c"], show_scores=False)
    colours = [picture.getpixel((200 * idx + 50, 180)) for idx in range(3)]
    assert min(np.abs(np.subtract(a, b)).max() for a, b in zip(colours, colours[1:] + colours[:1], strict=True)) > 50


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (48, 64), (520, 400)])
@pytest.mark.parametrize("num", [0, 25])
def test_draw_instances__any_size_and_number(size, num):
    masks = [mask for mask in _disks(*size, num) if mask.any()]
    instances = _instances(masks, labels=[idx % 2 for idx in range(len(masks))])
    image = np.zeros((*size, 3), dtype=np.uint8)
    picture = draw_instances(image, instances, ["a very long class name", "b"])
    factor = picture.height // size[0]
    assert picture.size == (size[1] * factor, size[0] * factor)
    assert max(picture.size) >= 512


def test_draw_instances__small_images_are_enlarged_in_step():
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), dtype=bool)
    mask[30:34, 10:14] = True
    drawn = np.asarray(draw_instances(image, _instances([mask]), ["a"], show_scores=False)).any(axis=-1)
    assert (drawn == mask.repeat(8, axis=0).repeat(8, axis=1)).all()


def test_draw_instances__labels_cover_little_of_a_crowded_picture():
    image = np.zeros((600, 700, 3), dtype=np.uint8)
    instances = _instances(_disks(600, 700, 150), labels=[idx % 3 for idx in range(150)])
    names = ["first", "second", "third"]
    with_text = np.asarray(draw_instances(image, instances, names))
    masks_only = np.asarray(draw_instances(image, instances, ["", "", ""], show_scores=False))
    assert 0.02 < (with_text != masks_only).any(axis=-1).mean() < 0.12


def test_draw_instances__writes_names_with_line_breaks_on_one_line():
    image = np.zeros((600, 700, 3), dtype=np.uint8)
    instances = _instances(_disks(600, 700, 1))
    with_breaks = draw_instances(image, instances, ["a\n b\n", "c"])
    assert (np.asarray(with_breaks) == np.asarray(draw_instances(image, instances, ["a b", "c"]))).all()


def test_draw_instances__masks_of_another_image_are_refused():
    with pytest.raises(VispeftError, match=r"of an image of 30x20 .* but a mask is of 20x30"):
        draw_instances(np.zeros((30, 20, 3), dtype=np.uint8), _instances([np.ones((20, 30), dtype=bool)]), ["a"])


def test_draw_instances__draws_the_outlines_of_boxes_without_masks():
    image = np.zeros((600, 700, 3), dtype=np.uint8)
    boxes = torch.tensor([[100.0, 50.0, 300.0, 250.0], [-5.0, 590.0, 720.0, 620.0]])
    instances = Instances(torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64), boxes, ())
    picture = np.asarray(draw_instances(image, instances, ["a"], show_scores=False)).any(axis=-1)
    assert picture[50, 100:300].all()
    assert picture[50:250, 299].all()
    assert not picture[60:240, 110:290].any()
    assert picture[599].all()
