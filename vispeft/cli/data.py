"""Commands for data sets: check, stats, show, split, convert, shapes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vispeft.cli.terminal import console, say

if TYPE_CHECKING:
    from vispeft.coco.problems import CheckReport, Problem

app = typer.Typer(help="Data sets: check, repair, count, show, split, convert, draw.", no_args_is_help=True)


class Reading(StrEnum):
    """Tasks that read COCO instance files."""

    INSTANCE = "instance"
    DETECTION = "detection"


Task = Annotated[Reading, typer.Option(help="With detection, boxes count and masks are ignored, as in training.")]
Annotations = Annotated[Path, typer.Argument(help="COCO instances file (JSON).", show_default=False)]
Images = Annotated[Path, typer.Option(help="Folder of the images; file_name is relative to it.", show_default=False)]
OptionalImages = Annotated[Path | None, typer.Option(help="Folder of the images; file_name is relative to it.")]
Channels = Annotated[int, typer.Option(min=1, max=12, help="Channels of the images: 1 for grey, 3 for RGB, ...")]
Out = Annotated[Path, typer.Option(help="Output folder.", show_default=False)]


@app.command()
def check(
    annotations: Annotations,
    images: Images,
    fix: Annotated[Path | None, typer.Option(help="Write a repaired copy of the annotation file here.")] = None,
    channels: Channels = 3,
    task: Task = Reading.INSTANCE,
) -> None:
    """Report all problems of a data set at once. The exit status is 1 if training would refuse the data set, else 0.

    Example: vispeft data check train.json --images images
    """
    from vispeft.data.reading.check import check_dataset, write_fixed

    if fix is not None:
        report = write_fixed(annotations, images, fix, num_channels=channels, boxes_alone=task is Reading.DETECTION)
        _print_problems(report.warnings, "repaired or left out")
        console().print(
            f"Repaired copy in {fix}: {report.num_images} images, {report.num_categories} classes, "
            f"{report.num_instances} instances, {report.num_crowds} crowd regions"
        )
        return
    report = check_dataset(annotations, images, num_channels=channels, boxes_alone=task is Reading.DETECTION)
    _print_problems(report.refusals, "refused")
    _print_problems(report.warnings, "warning")
    if report.refused:
        _print_repair_outcome(report)
        remedy = (
            " `vispeft data check ... --fix FILE` repairs the file as far as possible." if report.is_fixable else ""
        )
        say(f"{annotations} cannot be used for training.{remedy}")
        raise typer.Exit(1)
    console().print(
        f"{annotations}: {report.num_images} images, {report.num_categories} classes, "
        f"{report.num_instances} instances, "
        f"{report.num_crowds} crowd regions; {len(report.warnings)} kinds of warnings"
    )


@app.command()
def stats(
    annotations: Annotations,
    images: OptionalImages = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, max=12, help="Also give mean and deviation of each of so many channels; needs --images."),
    ] = None,
) -> None:
    """Count the instances of a data set by class, size and image; give the pixel statistics of its channels.

    Example: vispeft data stats train.json --images images --channels 4
    """
    from vispeft.data.channel_stats import channel_stats, format_channel_stats
    from vispeft.data.reading.coco import read_coco
    from vispeft.data.stats import format_stats, set_stats

    coco_set = read_coco(annotations, images, num_channels=channels or 3)
    _print_problems(coco_set.report.warnings, "warning")
    print(format_stats(set_stats(coco_set)))
    if channels is not None:
        print(f"\n{format_channel_stats(channel_stats(coco_set, channels))}")


@app.command()
def show(
    annotations: Annotations,
    images: Images,
    out: Annotated[Path, typer.Option(help="Image file to write.")] = Path("data.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 6,
    augmented: Annotated[int, typer.Option(min=0, help="Augmented variants beside each image.")] = 3,
    image_size: Annotated[int, typer.Option(min=32, help="Network input size of the augmentations.")] = 512,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    channels: Channels = 3,
) -> None:
    """Draw images with their masks, in the original and augmented as in training.

    Example: vispeft data show train.json --images images --out data.png
    """
    from vispeft.data.reading.coco import read_coco
    from vispeft.data.transforms.augmentation import TrainTransform
    from vispeft.engine.contact_sheet import contact_sheet

    coco_set = read_coco(annotations, images, num_channels=channels)
    _print_problems(coco_set.report.warnings, "warning")
    transform = TrainTransform(image_size) if augmented else None
    contact_sheet(
        coco_set,
        out,
        transform=transform,
        count=count,
        augmented=max(augmented, 1),
        seed=seed,
        num_channels=channels,
    )
    console().print(f"Contact sheet in {out}")


@app.command()
def split(
    annotations: Annotations,
    out: Out,
    images: OptionalImages = None,
    val_fraction: Annotated[float, typer.Option(help="Share of the images for validation, between 0 and 1.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    channels: Channels = 3,
    task: Task = Reading.INSTANCE,
) -> None:
    """Split a data set into train.json and val.json, with every class in the same proportion.

    Example: vispeft data split all.json --out splits --val-fraction 0.2
    """
    from vispeft.data.split import split_coco

    result = split_coco(
        annotations,
        images,
        out,
        val_fraction=val_fraction,
        seed=seed,
        num_channels=channels,
        boxes_alone=task is Reading.DETECTION,
    )
    _print_problems(result.train.report.warnings, "warning")
    for side, path in ((result.train, result.train_path), (result.val, result.val_path)):
        console().print(f"{path}: {len(side)} images, {side.num_instances} instances")


convert = typer.Typer(help="Convert other annotation formats to COCO.", no_args_is_help=True)
app.add_typer(convert, name="convert")
Json = Annotated[Path, typer.Option(help="COCO file to write.", show_default=False)]


@convert.command()
def yolo(
    images: Images,
    labels: Annotated[Path, typer.Option(help="Folder of one text file per image.", show_default=False)],
    names: Annotated[Path, typer.Option(help="data.yaml with `names`, or classes.txt.", show_default=False)],
    out: Json,
) -> None:
    """Convert YOLO segmentation labels.

    Example: vispeft data convert yolo --images images --labels labels --names data.yaml --out coco.json
    """
    from vispeft.data.converters import convert_yolo

    _print_problems(convert_yolo(images, labels, out, names=names), "warning")
    console().print(f"COCO file in {out}")


@convert.command()
def labelme(
    folder: Annotated[Path, typer.Argument(help="Folder of LabelMe files.", show_default=False)],
    out: Json,
    images: Annotated[Path | None, typer.Option(help="Folder of the images. Default: the folder itself.")] = None,
) -> None:
    """Convert LabelMe files, one JSON per image.

    Example: vispeft data convert labelme annotated --out coco.json
    """
    from vispeft.data.converters import convert_labelme

    _print_problems(convert_labelme(folder, out, images=images), "warning")
    console().print(f"COCO file in {out}")


@convert.command()
def masks(
    images: Images,
    masks: Annotated[
        Path,
        typer.Option(
            help="For a.jpg: a.png or a.tif of instance numbers, or a folder a with one mask file per instance."
        ),
    ],
    name: Annotated[list[str], typer.Option(help="Class name; several with --classes.", show_default=False)],
    out: Json,
    classes: Annotated[Path | None, typer.Option(help="Folder of masks of class numbers, for several classes.")] = None,
) -> None:
    """Convert instance masks.

    Example: vispeft data convert masks --images images --masks masks --name cell --out coco.json
    """
    from vispeft.data.converters import convert_masks

    _print_problems(convert_masks(images, masks, out, names=name, classes=classes), "warning")
    console().print(f"COCO file in {out}")


@app.command()
def shapes(
    out: Out,
    train: Annotated[int, typer.Option(min=1, help="Number of training images.")] = 100,
    val: Annotated[int, typer.Option(min=1, help="Number of validation images.")] = 40,
    size: Annotated[int, typer.Option(min=32, help="Side of the square images in pixels.")] = 256,
    domain: Annotated[str, typer.Option(help="Style of the scenes; an unknown name lists all.")] = "hatched",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw synthetic scenes with exact masks: train.json, val.json and images.

    Example: vispeft data shapes --out synthetic --train 100 --val 40
    """
    from vispeft.synthetic import write_splits

    for path in write_splits(out, num_train=train, num_val=val, size=size, seed=seed, domain=domain):
        console().print(f"{path} (images in {out / 'images'})")


def _print_repair_outcome(report: CheckReport) -> None:
    """Print the size of the copy that --fix would write, or the problems that --fix cannot repair."""
    repaired = report.repaired
    if repaired is None:
        return
    if repaired.refused:
        _print_problems(repaired.refusals, "--fix cannot repair")
        return
    say(
        f"--fix would leave {repaired.num_images} images, {repaired.num_categories} classes, "
        f"{repaired.num_instances} instances, {repaired.num_crowds} crowd regions."
    )


def _print_problems(problems: Sequence[Problem], label: str) -> None:
    """Print each problem on standard error, one line each."""
    for problem in problems:
        say(f"{label}: {problem.message}")
