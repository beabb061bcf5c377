"""Small COCO sets with one fault or oddity each, as labelling tools and careless hands leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 48, 64
COLOURS = {"disk": (225, 25, 20), "box": (20, 30, 225), "triangle": (25, 220, 30)}
ANGLES = np.arange(24) * (2 * np.pi / 24)
DISK = np.stack((17 + 11 * np.cos(ANGLES), 18 + 11 * np.sin(ANGLES)), axis=1).round(1).ravel().tolist()
BOX = [38.0, 20.0, 58.0, 20.0, 58.0, 36.0, 38.0, 36.0]
TRIANGLE = [30.0, 8.0, 50.0, 40.0, 12.0, 40.0]


@dataclass
class Made:
    """A set on disk before it is used. text: the annotation file's content, where it is not the document."""

    root: Path
    document: dict[str, Any]
    text: str = ""

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.document["annotations"]
        return found

    def rewrite(self, name: str, change: Callable[[Image.Image], Image.Image], **options: Any) -> None:
        """Replace an image by what `change` makes of it, under the same name."""
        change(Image.open(self.images / name).convert("RGB")).save(self.images / name, **options)

    def rename(self, old: str, new: str) -> None:
        """Give an image another name, on disk and in the document."""
        (self.images / old).rename(self.images / new)
        for image in self.document["images"]:
            image["file_name"] = new if image["file_name"] == old else image["file_name"]

    def write(self) -> Path:
        path = self.root / "annotations.json"
        path.write_text(self.text or json.dumps(self.document, indent=1))
        return path


def instance(number: int, image: int, category: int, polygon: list[float]) -> dict[str, Any]:
    x, y = polygon[0::2], polygon[1::2]
    bbox = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    entry = {"id": number, "image_id": image, "category_id": category, "segmentation": [polygon]}
    return entry | {"bbox": bbox, "area": float(coco_mask.area(encoded(polygon))), "iscrowd": 0}


def encoded(polygon: list[float]) -> dict[str, Any]:
    (rle,) = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"size": rle["size"], "counts": rle["counts"]}


def runs(polygon: list[float]) -> list[int]:
    """Run lengths of a mask, down the columns, zeros first."""
    column_major = coco_mask.decode(encoded(polygon)).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column_major.astype(int), [0]])))
    lengths: list[int] = np.diff(np.concatenate([[0], edges, [len(column_major)]])).tolist()
    return lengths


def sound_set(root: Path) -> Made:
    """a.png with a red disk and a blue box, b.png with a green triangle, on grey noise."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shapes in (("a.png", {"disk": DISK, "box": BOX}), ("b.png", {"triangle": TRIANGLE})):
        noise = rng.integers(90, 130, (HEIGHT, WIDTH, 1)).astype(np.uint8).repeat(3, 2)
        picture = Image.fromarray(noise)
        for label, polygon in shapes.items():
            ImageDraw.Draw(picture).polygon(polygon, fill=COLOURS[label])
        picture.save(root / "images" / name)
    names = enumerate(COLOURS, start=1)
    document = {
        "categories": [{"id": number, "name": name} for number, name in names],
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(("a.png", "b.png"), start=1)
        ],
        "annotations": [instance(1, 1, 1, DISK), instance(2, 1, 2, BOX), instance(3, 2, 3, TRIANGLE)],
    }
    return Made(root, document)


def category_ids_with_gaps(made: Made) -> None:
    ids = {1: 90, 2: 3, 3: 17}
    for category in made.document["categories"]:
        category["id"] = ids[category["id"]]
    for entry in made.entries:
        entry["category_id"] = ids[entry["category_id"]]


def compressed_rle_noncrowd(made: Made) -> None:
    rle = encoded(DISK)
    made.entries[0]["segmentation"] = rle | {"counts": rle["counts"].decode()}


def duplicate_annotation_ids(made: Made) -> None:
    made.entries[1]["id"] = 1


def duplicate_category_names(made: Made) -> None:
    made.document["categories"][2]["name"] = "disk"


def exact_duplicate_instance(made: Made) -> None:
    made.entries.append(made.entries[0] | {"id": 4})


def exif_rotated_jpeg(made: Made) -> None:
    picture = Image.open(made.images / "a.png").convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(made.images / "a.jpg", exif=exif, quality=95)
    made.document["images"][0]["file_name"] = "a.jpg"


def grayscale_png(made: Made) -> None:
    for name in ("a.png", "b.png"):
        made.rewrite(name, lambda picture: picture.convert("L"))


def grey_alpha_png(made: Made) -> None:
    made.rewrite("a.png", lambda picture: picture.convert("LA"))


def ids_above_32_bit(made: Made) -> None:
    for image in made.document["images"]:
        image["id"] += 2**40
    for entry in made.entries:
        entry["id"] += 2**41
        entry["image_id"] += 2**40


def images_empty_list(made: Made) -> None:
    made.document["images"] = []


def iscrowd_uncompressed_rle(made: Made) -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": runs([2, 40, 60, 40, 60, 47, 2, 47])}
    made.entries.append({"id": 4, "image_id": 2, "category_id": 1, "segmentation": crowd, "iscrowd": 1})


def json_truncated(made: Made) -> None:
    text = json.dumps(made.document, indent=1)
    made.text = text[: len(text) * 2 // 3]


def missing_image_file(made: Made) -> None:
    (made.images / "b.png").unlink()


def missing_segmentation(made: Made) -> None:
    del made.entries[1]["segmentation"]


def multi_part_polygon(made: Made) -> None:
    made.entries[1]["segmentation"] = [BOX, [40.0, 3.0, 52.0, 3.0, 52.0, 12.0, 40.0, 12.0]]
    made.entries[1]["bbox"] = [38, 3, 20, 33]

    def second_box(picture: Image.Image) -> Image.Image:
        ImageDraw.Draw(picture).rectangle((40, 3, 51, 11), fill=COLOURS["box"])
        return picture

    made.rewrite("a.png", second_box)


def nan_in_bbox(made: Made) -> None:
    made.entries[1]["bbox"][2] = float("nan")


def no_annotations_key(made: Made) -> None:
    del made.document["annotations"]


def no_area_no_iscrowd(made: Made) -> None:
    for entry in made.entries:
        del entry["area"], entry["iscrowd"]


def no_bbox(made: Made) -> None:
    for entry in made.entries:
        del entry["bbox"]


def odd_extensions(made: Made) -> None:
    made.rename("b.png", "b.jpg")
    Image.open(made.images / "a.png").save(made.images / "a.JPG", "JPEG", progressive=True, quality=95)
    made.document["images"][0]["file_name"] = "a.JPG"


def one_image_without_annotations(made: Made) -> None:
    made.entries.pop()


def palette_png(made: Made) -> None:
    for name in ("a.png", "b.png"):
        made.rewrite(name, lambda picture: picture.quantize(64))


def panoptic_json(made: Made) -> None:
    segment = {"id": 9, "category_id": 1, "area": 380, "bbox": [6, 7, 22, 22], "iscrowd": 0}
    made.document["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": [segment]}]


def path_traversal(made: Made) -> None:
    (made.images / "b.png").rename(made.root / "outside.png")
    made.document["images"][1]["file_name"] = "../outside.png"


def polygon_past_the_edge(made: Made) -> None:
    made.entries[1] = instance(2, 1, 2, [40.0, 30.0, 90.0, 30.0, 90.0, 70.0, 40.0, 70.0])


def polygon_two_points(made: Made) -> None:
    made.entries.append(made.entries[1] | {"id": 4, "segmentation": [[5.0, 5.0, 9.0, 9.0]], "bbox": [5, 5, 4, 4]})


def rle_size_differs_from_image(made: Made) -> None:
    made.entries[0]["segmentation"] = {"size": [24, 32], "counts": [100, 300, 368]}


def same_file_listed_twice(made: Made) -> None:
    made.document["images"].append(made.document["images"][0] | {"id": 3})
    made.entries.append(instance(4, 3, 1, DISK))


def size_in_json_differs(made: Made) -> None:
    made.document["images"][0] |= {"width": 2 * WIDTH, "height": 2 * HEIGHT}


def string_image_ids(made: Made) -> None:
    for image in made.document["images"]:
        image["id"] = f"img-{image['id']:03d}"
    for entry in made.entries:
        entry["image_id"] = f"img-{entry['image_id']:03d}"


def truncated_jpeg(made: Made) -> None:
    picture = Image.open(made.images / "b.png").convert("RGB")
    picture.save(made.images / "b.jpg", quality=95)
    whole = (made.images / "b.jpg").read_bytes()
    (made.images / "b.jpg").write_bytes(whole[: len(whole) * 6 // 10])
    made.document["images"][1]["file_name"] = "b.jpg"


def unicode_and_space_names(made: Made) -> None:
    made.rename("a.png", "Stra\u00dfe \u6771\u4eac 1.png")
    made.rename("b.png", " b (2).png")


def unknown_category_id(made: Made) -> None:
    made.entries[2]["category_id"] = 99


def very_long_image(made: Made) -> None:
    Image.new("RGB", (20_000, 20), (120, 120, 120)).save(made.images / "long.png")
    made.document["images"].append({"id": 3, "file_name": "long.png", "width": 20_000, "height": 20})
    for number, left in ((4, 100.0), (5, 15_000.0)):
        polygon = [left, 2.0, left + 400, 2.0, left + 400, 18.0, left, 18.0]
        entry = {"id": number, "image_id": 3, "category_id": 2, "segmentation": [polygon], "bbox": [left, 2, 400, 16]}
        made.entries.append(entry | {"area": 6400, "iscrowd": 0})


def zero_area_instance(made: Made) -> None:
    flat = [10.0, 5.0, 10.0, 25.0, 10.0, 15.0]
    made.entries.append(made.entries[0] | {"id": 4, "segmentation": [flat], "bbox": [10, 5, 0, 20], "area": 0})


def train_val_category_order_differs(made: Made) -> None:
    """The document is that of val; train has the ids of `sound_set`."""
    swapped = {1: 2, 2: 1, 3: 3}
    for category in made.document["categories"]:
        category["id"] = swapped[category["id"]]
    for entry in made.entries:
        entry["category_id"] = swapped[entry["category_id"]]


_KINDS = (
    *(category_ids_with_gaps, compressed_rle_noncrowd, duplicate_annotation_ids, duplicate_category_names),
    *(exact_duplicate_instance, exif_rotated_jpeg, grayscale_png, grey_alpha_png, ids_above_32_bit, images_empty_list),
    *(iscrowd_uncompressed_rle, json_truncated, missing_image_file, missing_segmentation, multi_part_polygon),
    *(nan_in_bbox, no_annotations_key, no_area_no_iscrowd, no_bbox, odd_extensions, one_image_without_annotations),
    *(palette_png, panoptic_json, path_traversal, polygon_past_the_edge, polygon_two_points),
    *(rle_size_differs_from_image, same_file_listed_twice, size_in_json_differs, string_image_ids, truncated_jpeg),
    *(unicode_and_space_names, unknown_category_id, very_long_image, zero_area_instance),
    train_val_category_order_differs,
)
KINDS: dict[str, Callable[[Made], None]] = {kind.__name__.replace("_", "-"): kind for kind in _KINDS}
