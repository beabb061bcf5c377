import pytest

from vispeft.coco.text import read_bytes, read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[1, 2.5]]", [[1, 2.5]]),
        ('{"size": [4, 6]}', {"size": [4, 6]}),
        ("[(1, 2), (3, 4)]", [[1, 2], [3, 4]]),
        ("{'size': [4, 6], 'counts': b'a0'}", {"size": [4, 6], "counts": "a0"}),
        ("array([[1., 2.]], dtype=float32)", [[1.0, 2.0]]),
        ("[[ 1.5  2. ]\n [-3.   4. ]]", [[1.5, 2.0], [-3.0, 4.0]]),
        ("[[np.float64(1.0), np.int64(2)]]", [[1.0, 2]]),
        ("4,12 20.5,12;20,-22", [4, 12, 20.5, 12, 20, -22]),
        ("text", None),
        ("", None),
        ("5", None),
        ("__import__('os')", None),
        ("[" * 100_000, None),
        ("(" * 100_000, None),
        ("{[]: 1}", None),
        ("9" * 100_000, None),
    ],
)
def test_read_text__gives_the_list_or_object_that_a_text_spells(text: str, value: object) -> None:
    assert read_text(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("b'a0\\\\6'", "a0\\6"), ('b"a\'0"', "a'0"), ("a0", None), ("b'cut", None), ("b'\\xff'", None), ("'a0'", None)],
)
def test_read_bytes__gives_the_text_of_printed_bytes(text: str, value: str | None) -> None:
    assert read_bytes(text) == value
