"""A finished run and images -> overlays and predictions.json."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from vispeft.coco.problems import Findings
from vispeft.coco.results import to_coco_results
from vispeft.data import EvalTransform, Sample, collate
from vispeft.data.reading.folder_scan import find_pictures
from vispeft.data.reading.images import FORMATS, Picture, read_picture
from vispeft.engine.loaders import image_size
from vispeft.engine.saved_runs import LoadedRun
from vispeft.errors import DataError, writing
from vispeft.io.json_files import write_json
from vispeft.models.postprocess import postprocess
from vispeft.structures import ImageMeta, Instances
from vispeft.training.devices import Precision, build_fabric, parse_device
from vispeft.training.progress import open_progress
from vispeft.training.step import in_float32
from vispeft.visualization.overlays import draw_instances


@dataclass(frozen=True)
class PredictionReport:
    """Counts of a prediction."""

    num_images: int
    num_instances: int


def predict_images(
    run: LoadedRun, paths: Sequence[Path], out: Path, *, threshold: float = 0.5, device: str = "auto"
) -> PredictionReport:
    """Write overlays `out/<name>.png`, COCO results `out/predictions.json` and the list of images `out/images.json`.

    The image ids of the results refer to that list.

    threshold: lowest score of an instance that is drawn and written
    """
    files = find_images(paths, out)
    names = overlay_names(files)
    fabric = build_fabric(device, _precision(run, device), key="--device")
    _make_folder(out, files, names)
    run.model.to(fabric.device)
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    with open_progress("predict", len(files), unit="image") as progress:
        for number, (path, name) in enumerate(zip(files, names, strict=True), start=1):
            try:
                picture = read_picture(path)
            except DataError as error:
                if len(files) == 1:
                    raise
                warnings.warn(f"{error} It is left out.", stacklevel=2)
                progress.update(number)
                continue
            height, width = picture.pixels.shape[:2]
            instances = _predict(run, fabric, picture, number, str(path), threshold)
            overlay = draw_instances(picture.pixels, instances, run.class_names, threshold=threshold)
            _save_picture(overlay, out / name)
            results += to_coco_results(instances, number, run.category_ids)
            images.append({"id": number, "file_name": str(path), "height": height, "width": width})
            progress.update(number)
    if not images:
        raise DataError(f"None of the {len(files)} images could be read.")
    categories = [{"id": i, "name": n} for i, n in zip(run.category_ids, run.class_names, strict=True)]
    write_json(out / "predictions.json", results)
    write_json(out / "images.json", {"images": images, "annotations": [], "categories": categories})
    return PredictionReport(len(images), len(results))


def _precision(run: LoadedRun, device: str) -> Precision:
    """Return the run's precision, or fp32 where the device lacks it, so that any device can predict."""
    kind, _ = parse_device(device, key="--device")
    asked = run.config.train.precision
    if asked != "fp16" or kind == "cuda":
        return asked
    warnings.warn(
        f"The run was trained in fp16, which the device `{kind}` does not have: it predicts in fp32.", stacklevel=3
    )
    return "fp32"


def _make_folder(out: Path, files: Sequence[Path], names: Sequence[str]) -> None:
    """Make the folder for the overlays, if none of them would stand in an image's place."""
    originals = {path.resolve() for path in files}
    for name in names:
        if (out / name).resolve() in originals:
            raise DataError(f"The overlay `{out / name}` would replace that very image. Give another --out.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            picture.save(partial, path.suffix.removeprefix("."))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _predict(run: LoadedRun, fabric: Fabric, picture: Picture, number: int, name: str, threshold: float) -> Instances:
    """Instances of one image, in its own pixels."""
    height, width = picture.pixels.shape[:2]
    example = EvalTransform(image_size(run.config))(picture, (), height, width, np.random.default_rng(0))
    meta = ImageMeta(number, name, height, width, *example.image.shape[1:])
    sample = Sample(example.image, example.labels, example.boxes_xyxy, example.masks, meta)
    batch = collate(
        [sample],
        pixel_mean=run.model.pixel_mean,
        pixel_std=run.model.pixel_std,
        image_size=image_size(run.config),
        size_divisor=run.model.size_divisor,
    )
    images = batch.images.to(fabric.device)
    with torch.no_grad(), fabric.autocast():
        predictions = run.model(images)
    padded = (images.shape[-2], images.shape[-1])
    maximum = run.config.eval.max_detections
    return postprocess(
        in_float32(predictions), batch.metas, padded_size=padded, max_detections=maximum, score_threshold=threshold
    )[0]


def find_images(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Return the image files of the paths: files as named, and those in folders by content. Warn of other files.

    out: a folder inside of those; its pictures are earlier overlays and are skipped
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
            raise DataError(f"`{path}` must be an image or a folder of images, but is not there.")
    return list(dict.fromkeys(found))


def overlay_names(files: Sequence[Path]) -> list[str]:
    """A file name for each overlay; files of one name in several folders are told apart by a number."""
    names: list[str] = []
    taken: set[str] = set()
    for path in files:
        name, number = f"{path.stem}.png", 2
        while name in taken:
            name, number = f"{path.stem}_{number}.png", number + 1
        taken.add(name)
        names.append(name)
    return names
