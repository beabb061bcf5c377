"""Schema of a configuration: typed, frozen sections. `defaults.py` fills in empty keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vispeft.config.methods import checked_deltas, checked_rates, imported_modules
from vispeft.errors import ConfigError

FilePath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
WholeNumber = Annotated[int, Field(ge=0)]


def checked_cache(value: str) -> str:
    """Return `off`, `memory`, or a directory, which need not exist yet."""
    if not value.strip():
        raise ConfigError("`train.feature_cache` must be `off`, `memory` or a directory, but is empty.")
    if value not in ("off", "memory") and Path(value).expanduser().is_file():
        raise ConfigError(f"`train.feature_cache` must be `off`, `memory` or a directory, but {value} is a file.")
    return value


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """Base model that is adapted, and the source of its weights."""

    name: str = Field("mask_dino", description="Model family; see `vispeft methods`.")
    backbone: str | None = Field(None, description="Any timm model. Default: resnet50, or that of the bundled base.")
    weights: str = Field(
        "pretrained",
        description="`bundled`, `pretrained` (timm's for the backbone), `none`, a name of `vispeft models`, a weights "
        "file, `https://...`, or `hf://user/name[/file][@revision]`; with `name: mask2former` or `eomt` also a "
        "directory of transformers, with `name: transformers` or `sam3` a directory or a name of its hub.",
    )
    backbone_weights: FilePath | None = Field(
        None, description="File with the weights of the backbone alone, instead of timm's download."
    )
    image_size: Count | None = Field(None, description="Longer side of the network input in pixels.")
    size: str | None = Field(None, description="Named size of pixel decoder and decoder. Default: base.")
    options: dict[str, Any] = Field({}, description="Further arguments of `vispeft.build_model`.")
    backbone_options: dict[str, Any] = Field({}, description="Further arguments of `timm.create_model`.")
    in_chans: Annotated[int, Field(ge=1, le=12)] | None = Field(
        None,
        description="Channels of the images, 1 to 12: 1 for grey, others for multispectral ones. Default: those of the "
        "weights, or 3 for RGB.",
    )
    pixel_mean: tuple[float, ...] | None = Field(
        None, description="Mean of each channel in 0..255; see `vispeft data stats`. Default: the pretrained model's."
    )
    pixel_std: tuple[Positive, ...] | None = Field(
        None, description="Standard deviation of each channel in 0..255, with `pixel_mean`."
    )
    tile: Count | None = Field(
        None,
        description="Side of the tiles, in pixels of the image, into which larger images are cut in training, "
        "evaluation and prediction. `image_size` is the size of a tile at the network, by default the same.",
    )
    tile_overlap: Annotated[float, Field(ge=0, le=0.75)] = Field(
        0.25, description="Part of a tile's side that it shares with the next one, at least."
    )
    num_queries: Count | None = Field(
        None, description="Queries, the most objects of one image. Default: those of the weights, or of the size."
    )
    keep_classes: bool = Field(
        False, description="Keep the classes of the weights and add those of the data set that are not among them."
    )
    weights_classes: tuple[str, ...] = Field(
        (),
        description="Names of the classes of the weights, in order, for a weights file that does not name them: new "
        "classes start from those of the nearest name. Default: COCO's, for 80 classes.",
    )
    frozen_precision: Literal["fp32", "bf16", "int8", "nf4"] = Field(
        "fp32",
        description="Storage of frozen weights of linear maps and convolutions: `bf16` for training in bf16, `int8` or "
        "`nf4` for 8 or 4 bits.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )


class PeftConfig(Section):
    """Trained parts: deltas by site pattern, and parameters trained in full by pattern."""

    # validated first, because deltas and rates may name a method that one of these modules registers
    modules: Annotated[tuple[str, ...], AfterValidator(imported_modules)] = Field(
        (), description="Python modules that register your own methods, imported before the plan is built."
    )
    deltas: Annotated[dict[str, Any], AfterValidator(checked_deltas)] = Field(
        {}, description="Site pattern or @role to `{method: lora, rank: 8, ...}`, a list of these, or null for none."
    )
    train: tuple[str, ...] = Field((), description="Patterns of modules and parameters trained in full.")


class SplitConfig(Section):
    """One COCO annotation file and the folder of its images."""

    annotations: FilePath | None = Field(None, description="COCO file (JSON): instances, panoptic or boxes.")
    images: FilePath | None = Field(None, description="Folder of the images; `file_name` is relative to it.")
    segments: FilePath | None = Field(
        None,
        description="Folder of the PNG files of a panoptic file, by default named as that file without `.json`; or of "
        "label maps, for `task: semantic`.",
    )


class AugmentConfig(Section):
    """Augmentation of training images together with their masks and boxes."""

    scale: tuple[Positive, Positive] = Field(
        (0.5, 1.5), description="Range of the large-scale jitter; 1 fits the longer side to `model.image_size`."
    )
    flip: Probability = Field(0.5, description="Probability of a horizontal flip.")
    vertical_flip: Probability = 0.0
    quarter_turn: Probability = 0.0
    colour: Probability = Field(0.3, description="Strength of brightness, contrast, saturation and hue changes.")
    copy_paste: Probability = Field(
        0.0,
        description="Probability that instances of another training image are pasted; for `task: instance` alone.",
    )
    min_pixels: Count = Field(4, description="Instances with fewer visible pixels are dropped.")
    variants: Count | None = Field(
        None,
        description="Number of fixed variants of each image, one per epoch in turn. Default: a new one for each draw.",
    )
    extra: dict[str, dict[str, Any]] = Field({}, description="Further albumentations transforms: name to options.")


class DataConfig(Section):
    """Training and validation sets, augmentation and sampling."""

    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    sampler: Literal["shuffle", "class_balanced"] = Field(
        "shuffle", description="`class_balanced` draws images of rare classes more often."
    )


class MethodRates(Section):
    """Learning rate and weight decay of one method's parameters."""

    lr: Positive | None = None
    weight_decay: NotNegative | None = None


class RegionRates(MethodRates):
    """Rates of one region of the model. They override the rates of methods."""

    lr_scale: Positive | None = Field(None, description="Factor on the learning rate that the region has without it.")
    start: Fraction | None = Field(
        None, description="Fraction of the run during which the region is still frozen. Default: none."
    )


def checked_regions(regions: dict[str, RegionRates]) -> dict[str, RegionRates]:
    """Return the regions unchanged; raise ConfigError for one that sets both `lr` and `lr_scale`."""
    for pattern, rates in regions.items():
        if rates.lr is not None and rates.lr_scale is not None:
            raise ConfigError(
                f"only one of `lr` and `lr_scale` may be set in `train.regions.{pattern}`, but both are. Remove one."
            )
    return regions


class TrainConfig(Section):
    """Settings of training: length, batches, learning rates, device and processes."""

    steps: Count | None = Field(None, description="Optimizer steps. Default: scaled to the number of images.")
    epochs: Positive | None = Field(None, description="Passes over the training set, instead of `train.steps`.")
    batch_size: Count = Field(4, description="Images per step and process.")
    accumulate: Count = Field(1, description="Batches whose gradients make one step.")
    lr: Positive = Field(1e-3, description="Learning rate of all parameters without an own rate in `train.methods`.")
    weight_decay: NotNegative = 0.05
    methods: Annotated[dict[str, MethodRates], AfterValidator(checked_rates)] = Field(
        {}, description="Rates per method: `lora`, `adapter`, ..., and `full` for parameters trained in full."
    )
    regions: Annotated[dict[str, RegionRates], AfterValidator(checked_regions)] | None = Field(
        None,
        description="Rates by site pattern or @role, which override those per method; the last matching pattern "
        "counts. Default: 10 times the rate for a class head that the weights file has no classes for.",
    )
    lora_plus_ratio: Positive = Field(
        1.0, description="LoRA+: learning rate of B over that of A in `lora` and `dora`; the paper suggests about 16."
    )
    warmup: WholeNumber | None = Field(None, description="Steps of linear warm-up. Default: a twentieth of the steps.")
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Fraction, ...] = Field(
        (0.889, 0.963), description="Points at which `schedule: step` lowers the rate, as fractions of the run."
    )
    gamma: Fraction = Field(0.1, description="Factor at each milestone.")
    clip: Positive | None = Field(1.0, description="Maximum norm of all gradients together; empty: no clipping.")
    update_statistics: bool = Field(
        False, description="Update the running statistics of BatchNorms that are trained in full. Default: frozen."
    )
    ema: Fraction | None = Field(
        None, description="Decay of the moving average of the trained weights, which is saved."
    )
    checkpoint_every: Count | None = Field(
        None, description="Steps between additional checkpoints. Default: checkpoints at evaluations only."
    )
    patience: Count | None = Field(None, description="Stop after this many evaluations without a better mask AP.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `mps`, or one GPU as `cuda:1`.")
    devices: Count = Field(1, description="Processes on this machine, one device each (DDP).")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="`auto` is bf16 on a GPU that has it and fp32 elsewhere."
    )
    workers: WholeNumber | None = Field(
        None, description="Loader processes. Default: cores minus one, at most 8; on a CPU one for every 8 cores."
    )
    compile: bool = Field(
        False,
        description="Compile the blocks of encoder and decoders by `torch.compile` in training: the first steps take "
        "a minute longer, the others less time.",
    )
    feature_cache: Annotated[str, AfterValidator(checked_cache)] = Field(
        "off", description="Storage of the features of the frozen prefix: `off`, `memory`, or a directory to share."
    )
    eval_every: Count | None = Field(None, description="Steps between evaluations. Default: a fifth of the steps.")
    log_every: Count | None = Field(None, description="Steps between log lines. Default: a hundredth of the steps.")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("only one of `train.steps` and `train.epochs` may be set, but both are. Remove one.")
        return self


class LossConfig(Section):
    """Settings of the mask losses."""

    num_points: Count | None = Field(
        None,
        description="Points at which masks are compared. Default: scaled to the image's area, 12544 at 1024 pixels.",
    )


class EvalConfig(Section):
    """Settings of evaluation."""

    max_detections: Count = Field(
        300,
        description="Instances kept per image, by score. COCO counts up to 100 of each class in an image; where there "
        "are more, `AP@N` and `AR@N` are given too.",
    )
    batch_size: Count = Field(1, description="Images per forward pass.")
    object_mask_threshold: Probability | None = Field(
        None,
        description="With `task: panoptic`, the least score of a query that becomes a segment. Default: the published "
        "0.8, and 0.25 with `model.name: mask_dino`.",
    )
    overlap_threshold: Probability = Field(
        0.8, description="With `task: panoptic`, the least part of a mask that other segments leave uncovered."
    )


class Config(Section):
    """Configuration of a whole run."""

    task: Literal["instance", "semantic", "panoptic", "detection"] = Field(
        "instance",
        description="Task of the model: masks of instances, label maps, segments of panoptic maps, or boxes alone.",
    )
    model: ModelConfig = ModelConfig()
    peft: PeftConfig = PeftConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _rounded_for_autocast(self) -> Config:
        if self.model.frozen_precision == "bf16" and self.train.precision not in ("auto", "bf16"):
            raise ConfigError(
                f"`train.precision` must be `bf16` with `model.frozen_precision: bf16`, but is "
                f"`{self.train.precision}`. Or store the frozen weights as `fp32`, `int8` or `nf4`."
            )
        return self

    @model_validator(mode="after")
    def _whole_images(self) -> Config:
        if self.model.tile is not None and self.task != "instance":
            raise ConfigError(
                f"`model.tile` must be left out with `task: {self.task}`: of tiles, only instance masks can be merged."
            )
        return self

    @model_validator(mode="after")
    def _pastes_instances(self) -> Config:
        if self.data.augment.copy_paste and self.task != "instance":
            raise ConfigError(
                f"`data.augment.copy_paste` must be 0 with `task: {self.task}`, but is {self.data.augment.copy_paste}: "
                "only instances with masks can be pasted."
            )
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for completion and hints in editors."""
    return Config.model_json_schema()
