from typing import Any

import pytest

from vispeft.coco.foreign_formats import foreign_format_hint


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"shapes": [], "imagePath": "a.png"}, "convert labelme"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA project"),
        ({"info": {}, "objects": []}, "ISAT"),
        ([{"image_id": 1, "category_id": 1, "score": 0.5}], "results file"),
        ([{"id": 1, "data": {}, "annotations": []}], "Label Studio"),
        ([{"image": "a.png", "annotations": []}], "CreateML"),
        ([{"id": 1, "image_id": 1, "category_id": 1}], "list `annotations` alone"),
    ],
)
def test_hint_of_other_form__knows_the_tool(document: Any, word: str) -> None:
    assert word in foreign_format_hint(document)


@pytest.mark.parametrize("document", [None, [], [1], {}, {"images": [], "annotations": [], "info": {}, "objects": []}])
def test_hint_of_other_form__is_empty_for_others(document: Any) -> None:
    assert foreign_format_hint(document) == ""
