"""Candidates of a comparison, read from run directories and results files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vispeft.coco.ground_truth import GroundTruth, read_ground_truth
from vispeft.coco.values import is_number
from vispeft.errors import DataError
from vispeft.evaluation.metrics.base import LABEL_MAP_KINDS
from vispeft.evaluation.metrics.coco import Scored, read_scored
from vispeft.evaluation.statistics.bootstrap import Records, records_of
from vispeft.evaluation.statistics.compare import Entry
from vispeft.evaluation.statistics.seeds import group_by_configuration
from vispeft.io.json_files import read_object
from vispeft.io.run_layout import ANNOTATIONS_FILE, CONFIG_FILE, PREDICTIONS_FILE, SUMMARY_FILE
from vispeft.io.yaml_files import read_mapping

# keys that may differ between runs of one configuration, or that do not affect the result
_IGNORED_KEYS = ("seed", "workers", "device", "devices", "log_every", "checkpoint_every")


@dataclass(frozen=True)
class Source:
    """One run, or one results file.

    annotations: the file that the results were scored on
    configuration: the configuration without the seed, as text; None for a results file
    seed: seed of the training
    summary: content of `summary.json`
    """

    name: str
    results: Path
    annotations: Path
    configuration: str | None
    seed: Any
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A configuration to compare, with its runs. entry: the input of `compare`"""

    entry: Entry
    sources: tuple[Source, ...]

    def mean(self, key: str) -> float | None:
        """Return the mean of a number of `summary.json` over the runs; None if it is missing in one of them."""
        values = [source.summary.get(key) for source in self.sources]
        numbers = [value for value in values if is_number(value)]
        return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


@dataclass(frozen=True)
class CandidateSet:
    """All candidates of a comparison.

    kind: "segm", or "bbox" where the annotations or some results have no masks
    warnings: anomalies of the annotations and the results, one sentence each
    """

    candidates: tuple[Candidate, ...]
    kind: str
    warnings: tuple[str, ...]


def read_candidates(paths: Sequence[Path], annotations: Path | None = None, *, is_grouped: bool = True) -> CandidateSet:
    """Read run directories and results files and match them to the annotations, which must be the same for all.

    annotations: the annotation file of results files; a run directory has its own
    is_grouped: treat runs that differ in the seed alone as one configuration
    """
    sources = [find_source(path, annotations) for path in paths]
    names = _distinct([source.name for source in sources], [str(path) for path in paths])
    ground_truth = _common_ground_truth(sources)
    scored = [read_scored(ground_truth, source.results) for source in sources]
    kind, warnings = _kind(ground_truth, scored, names)
    groups = group_by_configuration(
        range(len(sources)),
        lambda index: sources[index].configuration if is_grouped else None,
        seed_of=lambda index: sources[index].seed,
    )
    titles = _distinct([_title([names[index] for index in group]) for group in groups], [names[g[0]] for g in groups])
    candidates = []
    for group, title in zip(groups, titles, strict=True):
        members = tuple(sources[index] for index in group)
        entry = Entry(title, tuple(_records(scored[index], kind) for index in group))
        plain = Candidate(entry, members)
        candidates.append(Candidate(Entry(title, entry.runs, plain.mean("trainable_params")), members))
    return CandidateSet(tuple(candidates), kind, (*ground_truth.warnings, *warnings))


def find_source(path: Path, annotations: Path | None = None) -> Source:
    """Return the files of a run directory, or a results file with its annotations."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"`{path}` does not exist. Name a run directory, or a results file with --annotations.")
        if annotations is None:
            raise DataError(
                f"`{path}` must be a run directory, or --annotations must name the annotation file of these results."
            )
        return Source(path.stem, path, annotations, None, None, {})
    for name in (CONFIG_FILE, ANNOTATIONS_FILE, PREDICTIONS_FILE, SUMMARY_FILE):
        if not (path / name).is_file():
            raise DataError(
                f"`{path}` must be a finished run, but has no {name}. Finish it: vispeft train ... --resume"
            )
    summary = read_object(path / SUMMARY_FILE)
    check_has_ap(path, summary)
    config = read_mapping(path / CONFIG_FILE)
    train = config.get("train") if isinstance(config.get("train"), dict) else {}
    seed = train.get("seed") if isinstance(train, dict) else None
    kept = {key: value for key, value in (train or {}).items() if key not in _IGNORED_KEYS}
    text = json.dumps(_without_nulls({**config, "train": kept}), sort_keys=True, default=str)
    name = path.resolve().name
    return Source(name, path / PREDICTIONS_FILE, path / ANNOTATIONS_FILE, text, seed, summary)


def _without_nulls(value: Any) -> Any:
    """Return a configuration without its empty keys: a run of an earlier version lacks those that are new."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(part) for key, part in value.items() if part is not None}


def check_has_ap(path: Path, summary: Mapping[str, Any]) -> None:
    """Raise DataError for the run of a task without AP, whose results are label maps."""
    if any(kind in summary for kind in LABEL_MAP_KINDS):
        raise DataError(
            f"`{path}` must be a run of `task: instance` or `task: detection`: label maps have no average precision. "
            f"Its metrics are in {SUMMARY_FILE}."
        )


def _common_ground_truth(sources: Sequence[Source]) -> GroundTruth:
    """Return the annotations of all results, or raise a DataError that names two files that differ."""
    first = sources[0].annotations
    ground_truth = read_ground_truth(first)
    content = first.read_bytes()
    for source in sources[1:]:
        if source.annotations == first or (source.annotations.is_file() and source.annotations.read_bytes() == content):
            continue
        if _scored_part(read_ground_truth(source.annotations)) != _scored_part(ground_truth):
            raise DataError(
                f"`{first}` and `{source.annotations}` are different annotations, so that their metrics cannot be "
                "compared. Compare runs that were scored on the same validation set."
            )
    return ground_truth


def _scored_part(ground_truth: GroundTruth) -> tuple[Any, ...]:
    """Return the parts of the ground truth that affect metrics."""
    keys = ("image_id", "category_id", "iscrowd", "area", "bbox")
    annotations = [tuple(entry[key] for key in keys) for entry in ground_truth.annotations]
    return (
        ground_truth.image_sizes,
        sorted(category["id"] for category in ground_truth.categories),
        annotations,
        ground_truth.rles,
    )


def _kind(ground_truth: GroundTruth, scored: Sequence[Scored], names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the kind that is compared, "segm" (masks) or "bbox" (boxes), and warnings about the results."""
    empty = [name for name, one in zip(names, scored, strict=True) if not len(one.columns)]
    warnings = [f"{', '.join(empty)}: an empty list of results; nothing was detected."] if empty else []
    if ground_truth.annotations and all(rle is None for rle in ground_truth.rles):
        return "bbox", [*warnings, "The annotations are boxes only, so that boxes are compared and not masks."]
    without = [name for name, one in zip(names, scored, strict=True) if one.masks is None]
    if without:
        return "bbox", [*warnings, f"{', '.join(without)}: boxes only, so that boxes are compared and not masks."]
    return "segm", warnings


def _title(names: Sequence[str]) -> str:
    """Return the common prefix of the names of the runs of one configuration."""
    if len(names) == 1:
        return names[0]
    common = "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )
    common = re.sub(r"([-_.=]+(seed|s)?[-_.=]*)?$", "", common.rstrip("0123456789"))
    return common or names[0]


def _distinct(names: Sequence[str], fallbacks: Sequence[str]) -> list[str]:
    """Return unique names: each name, or its fallback if it occurs twice, numbered if the fallback occurs twice too."""
    chosen = [name if names.count(name) == 1 else fallback for name, fallback in zip(names, fallbacks, strict=True)]
    return [
        name if chosen.count(name) == 1 else f"{name} ({chosen[: index + 1].count(name)})"
        for index, name in enumerate(chosen)
    ]


def _records(scored: Scored, kind: str) -> Records:
    return records_of(scored.match(kind), len(scored.image_ids), len(scored.category_ids))
