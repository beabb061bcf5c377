from __future__ import annotations

import pytest
import torch

from vispeft.data import Sample, collate
from vispeft.errors import DataError
from vispeft.structures import ImageMeta

MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)


def sample(height: int, width: int, num: int) -> Sample:
    masks = torch.zeros(num, height, width, dtype=torch.bool)
    masks[:, 1:3, 2:6] = True
    boxes = torch.tensor([[2.0, 1, 6, 3]]).repeat(num, 1)
    image = torch.full((3, height, width), 160, dtype=torch.uint8)
    return Sample(image, torch.arange(num), boxes, masks, ImageMeta(1, "a.png", height, width, height, width))


def test_collate__normalises_and_pads_at_the_right_and_bottom() -> None:
    batch = collate([sample(8, 10, 2), sample(16, 6, 0)], pixel_mean=MEAN, pixel_std=STD, image_size=16)
    assert batch.images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(batch.images[0, :, 0, 0], torch.tensor([60 / 50, 50 / 60, 40 / 70]))
    assert batch.images[0, :, 8:].abs().max() == 0
    assert batch.images[0, :, :, 10:].abs().max() == 0
    assert [len(targets) for targets in batch.targets] == [2, 0]
    assert batch.targets[1].masks.shape == (0, 16, 16)
    assert batch.targets[0].masks.sum().item() == 2 * 8
    torch.testing.assert_close(batch.targets[0].boxes[0], torch.tensor([4 / 16, 2 / 16, 4 / 16, 2 / 16]))


@pytest.mark.parametrize(("divisor", "size"), [(1, (16, 10)), (32, (32, 32)), (12, (24, 12))])
def test_collate__pads_to_the_largest_and_its_divisor(divisor: int, size: tuple[int, int]) -> None:
    batch = collate([sample(8, 10, 1), sample(16, 6, 1)], pixel_mean=MEAN, pixel_std=STD, size_divisor=divisor)
    assert batch.images.shape[2:] == size
    assert batch.targets[0].masks.shape[1:] == size
    width, height = size[1], size[0]
    torch.testing.assert_close(batch.targets[0].boxes[0], torch.tensor([4 / width, 2 / height, 4 / width, 2 / height]))


def test_collate__refuses_a_sample_beyond_the_image_size() -> None:
    with pytest.raises(DataError, match="8x10"):
        collate([sample(8, 10, 1)], pixel_mean=MEAN, pixel_std=STD, image_size=9)
