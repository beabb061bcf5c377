"""Many RLEs at once are read as one at a time, and as pycocotools reads them."""

import numpy as np
from pycocotools import mask as mask_utils

from vispeft.coco.rle import check_counts
from vispeft.coco.rle_batch import decode_region, decode_rles, measure_rles

ALPHABET = list("0123456789:OPQZ_`cmpz~ é/1Nk")


def _blobs(number: int, size: tuple[int, int]) -> list[dict[str, object]]:
    generator = np.random.default_rng(0)
    masks = generator.random((number, *size)) < np.linspace(0, 1, number)[:, None, None]
    masks[::2, :, : size[1] // 2] = False
    return [mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def _is_sound(text: str, num_pixels: int) -> bool:
    try:
        check_counts(text, num_pixels)
    except ValueError:
        return False
    return True


def test_measure_rles__areas_are_pycocotools() -> None:
    rles = _blobs(41, (31, 17))
    texts = [rle["counts"].decode() for rle in rles]
    found = measure_rles(texts * 200, np.full(len(texts) * 200, 31 * 17))
    assert found.is_sound.all()
    assert found.area.tolist() == [float(mask_utils.area(rle)) for rle in rles] * 200


def test_measure_rles__agrees_with_the_check_of_one_on_garbage() -> None:
    generator = np.random.default_rng(1)
    good = [rle["counts"].decode() for rle in _blobs(41, (9, 7))]
    texts = []
    for _ in range(1500):
        letters = list(good[generator.integers(len(good))])[: generator.integers(0, 12)]
        for _ in range(generator.integers(0, 3)):
            letters.insert(generator.integers(0, len(letters) + 1), str(generator.choice(ALPHABET)))
        texts.append("".join(letters))
    texts += good
    num_pixels = np.where(generator.random(len(texts)) < 0.5, 63, generator.integers(0, 30, len(texts)))
    num_pixels[-len(good) :] = 63
    expected = [_is_sound(text, int(number)) for text, number in zip(texts, num_pixels, strict=True)]
    assert measure_rles(texts, num_pixels).is_sound.tolist() == expected
    assert 41 < sum(expected) < 1000


def test_measure_rles__of_nothing() -> None:
    found = measure_rles([], np.zeros(0, dtype=np.int64))
    assert len(found.is_sound) == len(found.area) == 0


def test_measure_rles__masks_lie_between_begin_and_end() -> None:
    rles = _blobs(41, (31, 17))[1:]
    texts = [rle["counts"].decode() for rle in rles]
    found = measure_rles(texts, np.full(len(texts), 31 * 17))
    pixels = [np.flatnonzero(mask_utils.decode(rle).ravel(order="F")) for rle in rles]
    assert found.begin.tolist() == [one[0] for one in pixels]
    assert found.end.tolist() == [one[-1] + 1 for one in pixels]


def test_decode_region__is_the_mask_in_its_box() -> None:
    rles = _blobs(41, (31, 17))[1:]
    runs = decode_rles([rle["counts"].decode() for rle in rles])
    for index, rle in enumerate(rles):
        left, top, width, height = (int(side) for side in mask_utils.toBbox(rle))
        expected = mask_utils.decode(rle)[top : top + height, left : left + width]
        np.testing.assert_array_equal(decode_region(runs.of(index), (left, top, width, height), 31), expected)
