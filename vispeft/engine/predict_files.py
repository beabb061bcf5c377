"""Prediction of images by a finished run: overlays and predictions.json."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.coco.problems import Findings
from vispeft.coco.results import to_coco_results
from vispeft.data.reading.channels import read_image, shown
from vispeft.data.reading.folder_scan import find_pictures
from vispeft.data.reading.images import FORMATS
from vispeft.engine.predict import predictor_of_run
from vispeft.engine.saved_runs import LoadedRun
from vispeft.engine.tasks.registry import TASKS
from vispeft.errors import DataError, writing
from vispeft.io.json_files import write_json
from vispeft.io.pictures import write_picture
from vispeft.training.progress import open_progress
from vispeft.visualization.overlays import draw_instances


@dataclass(frozen=True)
class PredictionReport:
    """Counts of a prediction.

    found: name of what was found, such as instances
    has_label_maps: label maps were written too
    """

    num_images: int
    num_instances: int
    found: str = "instances"
    has_label_maps: bool = False


def predict_images(
    run: LoadedRun, paths: Sequence[Path], out: Path, *, threshold: float = 0.5, device: str = "auto"
) -> PredictionReport:
    """Write overlays `out/<name>.png`, COCO results `out/predictions.json` and the list of images `out/images.json`.

    The image ids of the results refer to that list. Label maps are written too: of semantic segmentation
    `out/semantic/<name>.png`, of panoptic segmentation `out/panoptic.json` and `out/panoptic/<name>.png`.

    threshold: lowest score of an instance that is drawn and written; label maps have none
    """
    files = find_images(paths, out)
    names = overlay_names(files)
    predictor = predictor_of_run(run, device, threshold=threshold, prefix="--")
    _make_folder(out, files, names)
    run.model.to(predictor.fabric.device)
    task = TASKS[run.config.task]
    drawn_from, writer = threshold if task.shows_scores else 0.0, task.writer(out, run.categories)
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    with open_progress("predict", len(files), unit="image") as progress:
        for number, (path, name) in enumerate(zip(files, names, strict=True), start=1):
            try:
                picture = read_image(path, run.model.num_channels)
            except DataError as error:
                if len(files) == 1:
                    raise
                warnings.warn(f"{error} It is left out.", stacklevel=2)
                progress.update(number)
                continue
            height, width = picture.pixels.shape[:2]
            instances = predictor(picture)
            overlay = draw_instances(
                shown(picture.pixels),
                instances,
                run.class_names,
                threshold=drawn_from,
                show_scores=task.shows_scores,
            )
            write_picture(out / name, overlay)
            results += to_coco_results(instances, number, run.category_ids)
            images.append({"id": number, "file_name": str(path), "height": height, "width": width})
            if writer is not None:
                writer.add(name, images[-1], instances)
            progress.update(number)
    if not images:
        raise DataError(f"None of the {len(files)} images could be read.")
    if writer is not None:
        writer.finish()
    write_json(out / "predictions.json", results, raises=DataError)
    document = {"images": images, "annotations": [], "categories": run.categories}
    write_json(out / "images.json", document, raises=DataError)
    return PredictionReport(len(images), len(results), task.found, writer is not None)


def _make_folder(out: Path, files: Sequence[Path], names: Sequence[str]) -> None:
    """Make the folder for the overlays; an overlay that would replace an input image is an error."""
    originals = {path.resolve() for path in files}
    for name in names:
        if (out / name).resolve() in originals:
            raise DataError(f"The overlay `{out / name}` would replace an input image. Give another --out.")
    with writing(out, DataError):
        out.mkdir(parents=True, exist_ok=True)


def find_images(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Return the image files of the paths: files as named, and those in folders by content. Warn of other files.

    out: a folder to skip, since its images are earlier overlays
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            scan = find_pictures(path, skip=() if out is None else (out,))
            findings = Findings()
            scan.report_ignored(findings)
            if not scan.pictures:
                told = "".join(f" {problem.message}" for problem in findings.problems())
                raise DataError(f"`{path}` must hold images ({', '.join(FORMATS)}), but holds none.{told}")
            for problem in findings.problems():
                warnings.warn(f"{path}: {problem.message}", stacklevel=3)
            found += scan.pictures
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"`{path}` must be an image or a folder of images, but does not exist.")
    return list(dict.fromkeys(found))


def overlay_names(files: Sequence[Path]) -> list[str]:
    """Return a file name for each overlay. A number distinguishes files of one name in several folders."""
    names: list[str] = []
    taken: set[str] = set()
    for path in files:
        name, number = f"{path.stem}.png", 2
        while name in taken:
            name, number = f"{path.stem}_{number}.png", number + 1
        taken.add(name)
        names.append(name)
    return names
