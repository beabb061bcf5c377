"""A backbone in two parts: its stem and first blocks or stages, and the rest of it.

Plain ViTs can be split after each block, other timm models after each stage, if timm runs the stages one after another,
our hybrids after their convolutional network, and every backbone after its body, where only our own pyramid and norms
follow.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.models import FeatureListNet
from torch import Tensor, nn

from vispeft.models.backbones.hybrid import HybridFeatures
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.modes import evaluating
from vispeft.models.split import SplitPoint, SplitPointError, is_under


@dataclass(frozen=True)
class BackboneSplit(ABC):
    """Forward pass of a backbone in two parts, for images of one size.

    It holds no module: `backbone` is the one that was split, or another with the same frozen prefix.
    """

    point: SplitPoint

    @abstractmethod
    def prefix(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs to keep, each [B, ...], of images [B, C, H, W]."""

    @abstractmethod
    def tail(self, backbone: Backbone, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps [B, C_i, H / s_i, W / s_i], finest first, from the outputs of `prefix`."""


def split_backbone(backbone: Backbone, images: Tensor, *, name: str) -> BackboneSplit:
    """Return the last split of a backbone with nothing trained before it; of a hybrid, that after its network.

    Trained parameters are those that require gradients. SplitPointError where the first part of the body is trained.

    images: [B, C, H, W], from which sizes are taken
    name: of the backbone in its model
    """
    body = f"{name}.body"
    parameters = backbone.named_parameters(prefix=name, remove_duplicate=False)
    trained = [name for name, p in parameters if p.requires_grad and is_under(name, (body,))]
    if not trained:
        return AfterBody(SplitPoint((body,), (body,)))
    if isinstance(backbone.body, HybridFeatures) and not any(is_under(n, (f"{body}.cnn",)) for n in trained):
        return AfterCNN(SplitPoint((f"{body}.cnn",), (body,), (f"{body}.model",)))
    stages = [f"{body}.{stage}" for stage in stage_names(backbone)]
    before = [name for name in trained if not is_under(name, stages)]
    if stages and before:
        raise SplitPointError(f"`{before[0]}` is trained, and the first block or stage depends on it")
    num_frozen = next((i for i, stage in enumerate(stages) if any(is_under(n, (stage,)) for n in trained)), 0)
    if num_frozen == 0:
        raise SplitPointError(f"`{trained[0]}` is trained, and no block or stage before it can be kept by itself")
    tail = tuple(stages[num_frozen:])
    if isinstance(backbone.body, FeatureListNet):
        kept = tuple(f"{body}.{stage}" for stage in _kept_stages(backbone, num_frozen))
        return AfterStage(SplitPoint(kept, (body,), tail), num_frozen)
    arguments, map_shape = _observe_blocks(backbone, num_frozen, images)
    if len(arguments) != len(tail):
        raise SplitPointError(f"the blocks from `{tail[0]}` on do not run once each")
    return AfterBlock(SplitPoint((stages[num_frozen - 1],), (body,), tail), num_frozen, arguments, map_shape)


def stage_names(backbone: Backbone) -> list[str]:
    """Return the modules of the body that make its maps one after another; none where it runs in one piece."""
    if isinstance(backbone.body, FeatureListNet):
        return list(backbone.body)
    return [f"model.blocks.{number}" for number in range(len(_blocks(backbone)))]


@dataclass(frozen=True)
class AfterBody(BackboneSplit):
    """Split of a backbone after its whole body: the body's maps are kept."""

    def prefix(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """Return the body's last maps, as many as are used, in the body's own order of dimensions."""
        return tuple(backbone.body(images)[-_num_used_maps(backbone) :])

    def tail(self, backbone: Backbone, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps, made from the body's."""
        return backbone.finish(features)


@dataclass(frozen=True)
class AfterCNN(BackboneSplit):
    """Split of a hybrid between its convolutional network and its ViT: the network's maps are kept."""

    def prefix(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the network."""
        return tuple(_hybrid(backbone).cnn(images))

    def tail(self, backbone: Backbone, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps, made from the network's by the ViT."""
        return backbone.finish(_hybrid(backbone).from_cnn_maps(features))


@dataclass(frozen=True)
class AfterStage(BackboneSplit):
    """Split of a backbone between two of the stages that timm's `FeatureListNet` runs one after another.

    num_frozen: stages in the frozen prefix
    """

    num_frozen: int

    def prefix(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """Return the frozen stages' outputs that are among the body's maps, and the output of the last stage."""
        kept = _kept_stages(backbone, self.num_frozen)
        x, outputs = images, []
        for name, stage in _stages(backbone)[: self.num_frozen]:
            x = stage(x)
            if name in kept:
                outputs.append(_single(x, f"{self.point.prefix[0]}.{name}"))
        return tuple(outputs)

    def tail(self, backbone: Backbone, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps: kept ones, and those of the stages that follow."""
        kept, stages, used = _kept_stages(backbone, self.num_frozen), _stages(backbone), _used_stages(backbone)
        maps = [feature for name, feature in zip(kept, features, strict=True) if name in used]
        x = features[-1]
        for name, stage in stages[self.num_frozen :]:
            # as timm: the last stage and those that write into their input are never recomputed
            recompute = backbone.recomputes and name != stages[-1][0] and not getattr(stage, "inplace", False)
            x = _single(run_layer(stage, x, recompute=recompute), f"{self.point.prefix[0]}.{name}")
            if name in used:
                maps.append(x)
        return backbone.finish(maps)


@dataclass(frozen=True)
class BlockArguments:
    """Arguments of a block beside the tokens, such as rotary embeddings. They depend on the image size alone."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True)
class AfterBlock(BackboneSplit):
    """Split of a plain ViT between two of its blocks.

    num_frozen: blocks in the frozen prefix
    arguments: of each block that follows
    map_shape: (C, H, W) of the map that the last block's tokens make
    """

    num_frozen: int
    arguments: tuple[BlockArguments, ...]
    map_shape: tuple[int, int, int]

    def prefix(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """Return the output of the last frozen block. timm runs stem and blocks, and stops after that block."""
        last = self.num_frozen - 1
        outputs: list[Any] = []
        # recorded by a hook: timm would return the tokens without class and register tokens
        handle = _blocks(backbone)[last].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            backbone.body.model.forward_intermediates(images, indices=[last], stop_early=True, intermediates_only=True)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise SplitPointError(f"`{self.point.name}` runs {len(outputs)} times in a forward pass, not once")
        return (_single(outputs[0], self.point.name),)

    def tail(self, backbone: Backbone, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps, from the tokens after the blocks that follow."""
        (x,) = features
        blocks = _blocks(backbone)[self.num_frozen :]
        for name, block, arguments in zip(self.point.tail, blocks, self.arguments, strict=True):
            called = partial(_call_block, block, arguments)
            x = _single(run_layer(called, x, recompute=backbone.recomputes), name)
        return backbone.finish([_tokens_to_map(x, self.map_shape)])


def _call_block(block: nn.Module, arguments: BlockArguments, x: Tensor) -> Any:
    return block(x, *arguments.positional, **arguments.named)


def _observe_blocks(
    backbone: Backbone, num_frozen: int, images: Tensor
) -> tuple[tuple[BlockArguments, ...], tuple[int, int, int]]:
    """Return the arguments of the blocks of the tail, and the shape of the last map, for images of this size."""
    observed: list[BlockArguments] = []

    def observe(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        observed.append(BlockArguments(args[1:], kwargs))

    with evaluating(backbone), contextlib.ExitStack() as handles:
        for block in _blocks(backbone)[num_frozen:]:
            handles.callback(block.register_forward_pre_hook(observe, prepend=True, with_kwargs=True).remove)
        _, channels, height, width = backbone.body(images)[-1].shape
    return tuple(observed), (channels, height, width)


def _tokens_to_map(x: Tensor, map_shape: tuple[int, int, int]) -> Tensor:
    """Return the map [B, C, H, W] of tokens [B, N, C], of which the last H * W are patches, or [B, H, W, C]."""
    _, height, width = map_shape
    if x.shape[1:] != map_shape:
        x = x.flatten(1, -2)[:, -height * width :].reshape(len(x), height, width, -1).permute(0, 3, 1, 2)
    return x.contiguous()


def _blocks(backbone: Backbone) -> Sequence[nn.Module]:
    """Return the blocks of a plain ViT of timm; none for other backbones."""
    if not backbone.is_plain or isinstance(backbone.body, FeatureListNet):
        return ()
    blocks = dict(backbone.body.named_modules()).get("model.blocks")
    return tuple(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else ()


def _stages(backbone: Backbone) -> list[tuple[str, nn.Module]]:
    assert isinstance(backbone.body, FeatureListNet)
    return list(backbone.body.items())


def _used_stages(backbone: Backbone) -> list[str]:
    """Return the stages whose outputs are the body's maps, as many as are used."""
    assert isinstance(backbone.body, FeatureListNet)
    return list(backbone.body.return_layers)[-_num_used_maps(backbone) :]


def _kept_stages(backbone: Backbone, num_frozen: int) -> list[str]:
    """Return the frozen stages whose outputs the tail needs."""
    frozen, used = stage_names(backbone)[:num_frozen], _used_stages(backbone)
    return [name for name in frozen if name in used or name == frozen[-1]]


def _num_used_maps(backbone: Backbone) -> int:
    """Return the number of the body's maps, from the last, that the backbone's own maps are made from."""
    return 1 if backbone.is_plain else len(backbone.channels)


def _hybrid(backbone: Backbone) -> HybridFeatures:
    assert isinstance(backbone.body, HybridFeatures)
    return backbone.body


def _single(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise SplitPointError(f"`{name}` gives a {type(output).__name__}, not one tensor")
    return output
