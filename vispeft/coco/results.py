"""COCO results: the list of {"image_id", "category_id", "bbox", "segmentation", "score"} that COCO tools accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vispeft.coco.values import as_box, as_integer, is_number
from vispeft.errors import DataError
from vispeft.io.json_files import read_json, write_json

if TYPE_CHECKING:  # scoring files needs no torch
    from vispeft.structures import Instances


def to_coco_results(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the instances of one image as COCO results, best first, ready for JSON.

    category_ids: the data set's own id of each contiguous class index
    """
    masks: list[dict[str, Any] | None] = [*instances.rles] or [None] * len(instances)
    scores, labels = instances.scores.tolist(), instances.labels.tolist()
    results = []
    for score, label, box, rle in zip(scores, labels, instances.boxes_xyxy.tolist(), masks, strict=True):
        left, top, right, bottom = box
        bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": bbox,
                **({} if rle is None else {"segmentation": {"size": list(rle["size"]), "counts": rle["counts"]}}),
                "score": score,
            }
        )
    return results


def write_results(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write COCO results to a JSON file, atomically."""
    write_json(path, list(results), raises=DataError)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the COCO results of a JSON file, each checked as far as possible without the annotations."""
    return checked_results(read_json(path), str(path))


def checked_results(results: Any, source: str) -> list[dict[str, Any]]:
    """Return a list of COCO results (boxes, masks or both) with integer ids, or raise a DataError.

    source: for the message
    """
    if not isinstance(results, list):
        hint = _where_results_are(results)
        raise DataError(f"`{source}` must hold a list of COCO results, but holds {_json_type(results)}.{hint}")
    faulty = [idx for idx, result in enumerate(results) if _faults(result)]
    if faulty:
        others = f" ({len(faulty) - 1} more results are refused, too)" if len(faulty) > 1 else ""
        reasons = "; it ".join(_faults(results[faulty[0]]))
        raise DataError(f"`{source}`: result {faulty[0]} (counted from 0) {reasons}{others}.")
    for key in ("bbox", "segmentation"):
        lacking = [idx for idx, result in enumerate(results) if not result.get(key)]
        if lacking and len(lacking) < len(results):
            raise DataError(f"`{source}`: result {lacking[0]} (counted from 0) has no `{key}`, though others have one.")
    return [_with_integer_ids(result) for result in results]


def _where_results_are(document: Any) -> str:
    """Return a hint if an object contains the list of results, or is an annotation file."""
    if not isinstance(document, dict):
        return ""
    lists = {key: value for key, value in document.items() if isinstance(value, list)}
    wrapped = [key for key, value in lists.items() if value and isinstance(value[0], dict) and "score" in value[0]]
    if not wrapped and "images" in lists:
        return " This looks like an annotation file."
    keys = wrapped or list(lists)
    return f" The list stands under `{keys[0]}`: write it alone, without an object around it." if len(keys) == 1 else ""


def _with_integer_ids(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result itself, or a copy in which ids such as 7.0 are integers."""
    ids = {key: result[key] for key in ("image_id", "category_id")}
    if all(type(value) is int for value in ids.values()):
        return result
    return result | {key: as_integer(value) for key, value in ids.items()}


def _faults(result: Any) -> list[str]:
    """Return all faults of one result, worded to follow "result 3"."""
    if not isinstance(result, dict):
        return [f"must be an object, but is {_json_type(result)}"]
    found = [
        f"must have an integer `{key}`, but has {_shown(result, key)}"
        for key in ("image_id", "category_id")
        if as_integer(result.get(key)) is None
    ]
    if not is_number(result.get("score")):
        found.append(f"must have a finite number as `score`, but has {_shown(result, 'score')}")
    bbox = result.get("bbox")
    if not bbox and not result.get("segmentation"):
        found.append("has neither `bbox` nor `segmentation`")
    if bbox and as_box(bbox) is None:
        sides = "four finite numbers x, y, width, height (sides at least 0)"
        found.append(f"must have a `bbox` of {sides}, but has {bbox!r:.80}")
    return found


def _shown(result: Mapping[str, Any], key: str) -> str:
    return f"{result[key]!r:.80}" if key in result else "none"


def _json_type(value: Any) -> str:
    """Return JSON's word for the type of a value, with its article."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    for kind, word in ((dict, "an object"), (list, "a list"), (str, "a string")):
        if isinstance(value, kind):
            return word
    return "a number"
