from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vispeft.data.reading.check import check_dataset, write_fixed
from vispeft.errors import DataError


def fixed(path: Path, folder: Path) -> dict[str, Any]:
    out = folder.parent / "fixed.json"
    write_fixed(path, folder, out)
    assert check_dataset(out, folder).problems == ()
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def kinds(path: Path, folder: Path) -> list[str]:
    return [problem.kind for problem in check_dataset(path, folder).problems]


@pytest.mark.parametrize(("name", "text"), [(1, "1"), (1.0, "1"), (2.5, "2.5")])
def test_read_categories__a_number_as_name_becomes_text_and_keeps_its_annotations(
    write: Any, folder: Path, document: dict[str, Any], name: float, text: str
) -> None:
    document["categories"][0]["name"] = name
    path = write(document)
    assert kinds(path, folder) == ["number-as-name"]
    content = fixed(path, folder)
    assert {c["id"]: c["name"] for c in content["categories"]} == {7: text, 3: "pair"}
    assert len(content["annotations"]) == 4


@pytest.mark.parametrize("name", [None, True, "", ["box"]])
def test_read_categories__invents_no_name(write: Any, folder: Path, document: dict[str, Any], name: Any) -> None:
    document["categories"][0]["name"] = name
    path = write(document)
    assert kinds(path, folder) == ["no-category-name"]
    with pytest.raises(DataError, match="give it one"):
        write_fixed(path, folder, folder.parent / "fixed.json")


def test_read_categories__leaves_out_one_without_name_that_is_not_used(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    document["categories"].append({"id": 9})
    path = write(document)
    assert kinds(path, folder) == ["no-category-name"]
    assert len(fixed(path, folder)["categories"]) == 2


def test_read_categories__drops_an_unused_root_of_the_same_name(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    document["categories"].insert(0, {"id": 0, "name": "box", "supercategory": "none"})
    path = write(document)
    (problem,) = check_dataset(path, folder).problems
    assert problem.kind == "unused-category-of-same-name"
    assert "id 0 of `box`" in problem.message
    assert [(c["id"], c["name"]) for c in fixed(path, folder)["categories"]] == [(3, "pair"), (7, "box")]


def test_read_categories__without_an_id_is_left_out_only_where_no_annotation_may_mean_it(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    document["categories"].append({"name": "spare"})
    assert len(fixed(write(document), folder)["categories"]) == 2
    document["categories"][0]["id"] = None
    with pytest.raises(DataError, match="its `id` is missing"):
        write_fixed(write(document), folder, folder.parent / "again.json")


@pytest.mark.parametrize("given", [{"7": "box", "3": "pair"}, {"box": 7, "pair": 3}], ids=["by id", "by name"])
def test_with_category_list__takes_an_object_of_ids_and_names(
    write: Any, folder: Path, document: dict[str, Any], given: dict[str, Any]
) -> None:
    document["categories"] = given
    document["info"] = {"year": 2020}
    path = write(document)
    assert kinds(path, folder) == ["bad-categories"]
    content = fixed(path, folder)
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(3, "pair"), (7, "box")]
    assert content["info"] == {"year": 2020}


def test_read_categories__refuses_names_alone(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["categories"] = ["box", "pair"]
    path = write(document)
    (problem,) = check_dataset(path, folder).problems
    assert 'write each as an object: {"id": 1, "name": "cat"}' in problem.message
    with pytest.raises(DataError, match="write each as an object"):
        write_fixed(path, folder, folder.parent / "fixed.json")


@pytest.mark.parametrize("name", [" box", "box\n", "bo\tx"])
def test_read_categories__tells_of_untidy_names_and_tidies_the_copy(
    write: Any, folder: Path, document: dict[str, Any], name: str
) -> None:
    document["categories"][0]["name"] = name
    path = write(document)
    report = check_dataset(path, folder)
    assert ([p.kind for p in report.problems], report.refused) == (["untidy-name"], False)
    assert fixed(path, folder)["categories"][1]["name"] == " ".join(name.split())
