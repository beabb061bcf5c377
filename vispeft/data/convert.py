"""Other instance formats as COCO: YOLO polygons, LabelMe files, and folders of PNG instance masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from vispeft.coco.values import as_number
from vispeft.data.check import write_json
from vispeft.data.images import LARGEST_IMAGE, read_header
from vispeft.data.problems import show
from vispeft.errors import ConfigError, DataError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))


@dataclass
class _Builder:
    """Grows a COCO dictionary. Category ids count from 1 in the order of `names`."""

    names: list[str]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add_image(self, file_name: str, height: int, width: int) -> None:
        entry = {"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width}
        self.images.append(entry)

    def add_instance(self, category_idx: int, segmentation: Any, rle: Any) -> None:
        """An instance of the latest image. rle: its pycocotools RLE; one without a pixel is left out."""
        area = float(coco_mask.area(rle))
        if area > 0:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": self.images[-1]["id"],
                    "category_id": category_idx + 1,
                    "segmentation": segmentation,
                    "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                    "area": area,
                    "iscrowd": 0,
                }
            )

    def add_polygon(self, category_idx: int, points: NDArray[np.float64]) -> None:
        """A polygon, [P, 2] x, y in pixels, cut to the latest image."""
        height, width = self.images[-1]["height"], self.images[-1]["width"]
        flat = np.clip(points, 0, (width, height)).reshape(-1)
        self.add_instance(category_idx, [flat.tolist()], coco_mask.frPyObjects([flat], height, width)[0])

    def add_mask(self, category_idx: int, mask: NDArray[np.bool_]) -> None:
        """A dense mask of the latest image, [height, width]."""
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        self.add_instance(category_idx, {"size": rle["size"], "counts": rle["counts"].decode("ascii")}, rle)

    def write(self, out: Path, source: Path) -> None:
        if not self.images:
            raise DataError(f"{source} holds no image to convert.")
        if not self.annotations:
            raise DataError(f"{source} holds no instance to convert.")
        categories = [{"id": idx + 1, "name": name} for idx, name in enumerate(self.names)]
        write_json(out, {"images": self.images, "categories": categories, "annotations": self.annotations})


def convert_yolo(images: Path, labels: Path, out: Path, *, names: Sequence[str] | Path) -> None:
    """Write YOLO segmentation labels as COCO.

    labels: folder of one text file per image, lines `class x1 y1 x2 y2 ...` in 0..1; an image without one is background
    names: class names in order, or a `data.yaml` with `names`
    """
    builder = _Builder(_yolo_names(names) if isinstance(names, Path) else list(names))
    for path in _images_in(images):
        header = read_header(path)
        builder.add_image(path.relative_to(images).as_posix(), header.height, header.width)
        label_path = (labels / path.relative_to(images)).with_suffix(".txt")
        if label_path.exists():
            for category_idx, points in _yolo_lines(label_path, len(builder.names)):
                builder.add_polygon(category_idx, points * (header.width, header.height))
    builder.write(out, images)


def _yolo_names(path: Path) -> list[str]:
    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
        ordered = [names[key] for key in sorted(names)] if isinstance(names, dict) else list(names)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise DataError(f"{path} must be a YAML file with `names`: {error}") from error
    if isinstance(names, dict) and sorted(names) != list(range(len(names))):
        raise DataError(f"{path}: `names` must count from 0 without gaps.")
    return [str(name) for name in ordered]


def _yolo_lines(path: Path, num_classes: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = np.array(line.split(), np.float64)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: must be numbers, but is {show(line)}.") from error
        if len(values) < 7 or len(values) % 2 == 0 or not np.isfinite(values).all():
            raise DataError(
                f"{path}, line {number}: must be a class and at least three points (`class x1 y1 x2 y2 x3 y3 ...`), "
                f"but holds {len(values)} numbers. Boxes without a mask cannot be converted."
            )
        if values[0] not in range(num_classes):
            raise DataError(f"{path}, line {number}: class {values[0]:g} is not among the {num_classes} names.")
        if values[1:].min() < -0.01 or values[1:].max() > 1.01:
            raise DataError(f"{path}, line {number}: coordinates must lie in 0..1, relative to the image.")
        yield int(values[0]), values[1:].reshape(-1, 2)


def convert_labelme(folder: Path, out: Path, *, images: Path | None = None) -> None:
    """Write LabelMe files (one JSON per image) as COCO; classes are the labels in alphabetical order.

    images: the folder that `file_name` shall be relative to; None for `folder`. Shapes with the same `group_id` and
    label stay separate instances; other shapes than polygons and rectangles are refused.
    """
    documents = {path: _labelme_document(path) for path in sorted(folder.rglob("*.json"))}
    names = sorted({str(shape.get("label")) for document in documents.values() for shape in document["shapes"]})
    builder = _Builder(names)
    root = images or folder
    for path, document in documents.items():
        file_name = Path(str(document.get("imagePath", "")).replace("\\", "/")).name
        picture = root / path.parent.relative_to(folder) / file_name
        header = read_header(picture)
        builder.add_image(picture.relative_to(root).as_posix(), header.height, header.width)
        for shape in document["shapes"]:
            builder.add_polygon(names.index(str(shape.get("label"))), _labelme_points(path, shape))
    builder.write(out, folder)


def _labelme_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no LabelMe file: {error}") from error
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path} is no LabelMe file: it has no list `shapes`.")
    result: dict[str, Any] = document
    return result


def _labelme_points(path: Path, shape: dict[str, Any]) -> NDArray[np.float64]:
    kind, raw = shape.get("shape_type", "polygon"), shape.get("points")
    pairs = raw if isinstance(raw, list) and all(isinstance(p, list) and len(p) == 2 for p in raw) else []
    numbers = [as_number(value) for pair in pairs for value in pair]
    if any(value is None for value in numbers) or len(pairs) < (2 if kind == "rectangle" else 3):
        raise DataError(f"{path}: the shape {show(shape.get('label'))} has no valid `points`.")
    points = np.array(numbers, np.float64).reshape(-1, 2)
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if kind != "polygon":
        raise DataError(f"{path}: shapes of type {show(kind)} cannot be converted; only polygons and rectangles can.")
    return points


def convert_masks(images: Path, masks: Path, out: Path, *, names: Sequence[str], classes: Path | None = None) -> None:
    """Write PNG instance masks as COCO.

    masks: for the image `a.jpg` either `a.png`, in which every value but 0 (and 255 in a palette file: unlabelled, as
    in Pascal VOC) is one instance, or a folder `a` with one PNG per instance
    classes: folder of PNGs with class values (1 for the first name), for more than one class; an instance gets the
    value that most of its pixels have
    """
    if classes is None and len(names) != 1:
        raise ConfigError(f"`names` must be one class where `classes` is not given, but is {list(names)}.")
    builder = _Builder(list(names))
    for path in _images_in(images):
        header = read_header(path)
        relative = path.relative_to(images)
        builder.add_image(relative.as_posix(), header.height, header.width)
        size = (header.height, header.width)
        kinds = None if classes is None else _read_values((classes / relative).with_suffix(".png"), size)
        for mask in _instance_masks((masks / relative).with_suffix(""), size):
            value = 1 if kinds is None else int(np.bincount(kinds[mask]).argmax())
            if not 1 <= value <= len(names):
                raise DataError(f"{path}: an instance has the class value {value}, but there are {len(names)} names.")
            builder.add_mask(value - 1, mask)
    builder.write(out, images)


def _instance_masks(stem: Path, size: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    single = stem.with_name(stem.name + ".png")
    if single.exists():
        values = _read_values(single, size)
        for value in np.unique(values):
            if value != 0:
                yield values == value
        return
    for path in sorted(stem.glob("*.png")):
        mask = _read_values(path, size) > 0
        if mask.any():
            yield mask


def _read_values(path: Path, size: tuple[int, int]) -> NDArray[np.int64]:
    """The values of a mask file, palette indices as such, unlabelled pixels as 0. Returns [height, width]."""
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP")) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise DataError(f"{path} holds more than {LARGEST_IMAGE:,} pixels.")
            values = np.asarray(image).astype(np.int64)
            is_palette = image.mode == "P"
    except DataError:
        raise
    # decoders raise nearly every exception there is on hostile bytes
    except Exception as error:
        raise DataError(f"{path} cannot be read as a mask ({error}).") from error
    if values.ndim == 3:
        colours = values[:, :, :3]
        values = colours[:, :, 0] + 256 * colours[:, :, 1] + 65536 * colours[:, :, 2]
    if values.shape != size:
        raise DataError(f"{path} is {values.shape[1]}x{values.shape[0]}, but its image {size[1]}x{size[0]}.")
    return np.where(values == 255, 0, values) if is_palette else values


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder.")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
