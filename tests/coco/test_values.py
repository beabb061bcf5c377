import pytest

from vispeft.coco.values import as_flag, as_integer


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        (0, False),
        (1, True),
        (False, False),
        (True, True),
        (None, False),
        (1.0, True),
        (2, None),
        ("0", None),
        ([], None),
    ],
)
def test_as_flag__takes_numbers_and_booleans_alike(value: object, flag: bool | None) -> None:
    assert as_flag(value) is flag


@pytest.mark.parametrize(
    ("value", "integer"),
    [(7, 7), (7.0, 7), (-1.0, -1), (7.5, None), ("7", None), (True, None), (float("nan"), None), (2**63, None)],
)
def test_as_integer__takes_whole_floats_and_nothing_else(value: object, integer: int | None) -> None:
    assert as_integer(value) == integer
