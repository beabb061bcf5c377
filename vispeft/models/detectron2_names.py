"""Names of tensors in checkpoints of detectron2 models: those of backbones and of the deformable pixel decoder."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from vispeft.errors import CheckpointError

PIXEL_DECODER = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."
# official name -> ours
PIXEL_DECODER_NAMES: tuple[tuple[str, str], ...] = (
    (r"^sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.", "pixel_decoder.layers."),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.level_embed$", "pixel_decoder.level_embed"),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.norm\.", "pixel_decoder.lateral_convs.0.1."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.", "pixel_decoder.lateral_convs.0.0."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.norm\.", "pixel_decoder.output_convs.0.1."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.", "pixel_decoder.output_convs.0.0."),
    (r"^sem_seg_head\.pixel_decoder\.", "pixel_decoder."),
)
BACKBONE_NAMES: tuple[tuple[str, str], ...] = (
    # ResNet, detectron2 names
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^backbone\.stem\.conv1\.", "backbone.body.conv1."),
    (r"^backbone\.res2\.", "backbone.body.layer1."),
    (r"^backbone\.res3\.", "backbone.body.layer2."),
    (r"^backbone\.res4\.", "backbone.body.layer3."),
    (r"^backbone\.res5\.", "backbone.body.layer4."),
    # Swin; timm puts the patch merging at the start of the next stage
    (r"^backbone\.norm(\d)\.", r"backbone.norms.\1."),
    (r"^backbone\.layers\.0\.downsample\.", "backbone.body.layers_1.downsample."),
    (r"^backbone\.layers\.1\.downsample\.", "backbone.body.layers_2.downsample."),
    (r"^backbone\.layers\.2\.downsample\.", "backbone.body.layers_3.downsample."),
    (r"^backbone\.layers\.(\d)\.", r"backbone.body.layers_\1."),
    (r"^backbone\.patch_embed\.", "backbone.body.patch_embed."),
)
_RESNET_PARTS = (
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
)


def rename(name: str, names: Sequence[tuple[str, str]], *, family: str) -> str:
    """Return our name of an official tensor.

    names: pairs of an official name's pattern and our name, tried in order; the first that matches rewrites the name
    family: name of the model family, for errors

    Raises CheckpointError for a name that no pattern matches.
    """
    for pattern, replacement in names:
        ours, count = re.subn(pattern, replacement, name)
        if count:
            if ours.startswith("backbone.body.layer"):
                for part, part_replacement in _RESNET_PARTS:
                    ours = re.sub(part, part_replacement, ours)
            return ours
    raise CheckpointError(
        f"The checkpoint's tensor {name!r} has no place in {family}; is it another model's checkpoint?"
    )


def unpacked(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor by its name, but packed weights of `nn.MultiheadAttention` as those of q, k and v."""
    packed = re.match(r"(.*)\.in_proj_(weight|bias)$", name)
    if packed is None:
        return {name: tensor}
    return {f"{packed[1]}.{part}_proj.{packed[2]}": rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
