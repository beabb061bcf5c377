"""Split of a model into a frozen prefix, whose outputs can be kept, and a tail, which continues from them.

Neither part is a new model. Each works on shallow copies of the modules that contain the split point, in which
stand-ins replace the modules that do not run; every parameter, buffer and other module is the model's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from vispeft.errors import ConfigError
from vispeft.models.mask_dino.model import MaskDINO
from vispeft.models.mask_dino.pixel_decoder import PixelFeatures
from vispeft.structures import Predictions, Targets

_BODY = "backbone.body"
_PLAIN_BLOCKS = f"{_BODY}.model.blocks"
# the backbone gives its last four maps, a plain one makes them of the last
_NUM_MAPS = 4


class CutError(ConfigError):
    """A model without a frozen prefix to keep; the message is the reason, as a clause."""


@dataclass(frozen=True)
class Cut:
    """Split point of a model, by module names.

    kept: modules whose outputs are kept, in the order in which they run
    skipped: modules of the frozen prefix whose outputs the tail does not need
    front, behind: the frozen prefix is everything under `front` that is not under `behind`
    """

    kept: tuple[str, ...]
    skipped: tuple[str, ...]
    front: tuple[str, ...]
    behind: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the last module before the split point."""
        return self.kept[-1]

    def is_in_front(self, name: str) -> bool:
        """Tell whether the module, parameter or buffer of this name is in the frozen prefix."""
        return _is_under(name, self.front) and not _is_under(name, self.behind)


def find_cut(model: MaskDINO) -> Cut:
    """Return the last split point with nothing trained before it: after a backbone block or stage or the pixel decoder.

    Trained parameters are those that require gradients. CutError where the very first part of the model is trained.
    """
    trained = [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    if not any(_is_under(name, ("backbone", "pixel_decoder")) for name in trained):
        return Cut(("pixel_decoder",), ("backbone",), ("backbone", "pixel_decoder"))
    steps, used = _steps(model)
    between = [name for name in trained if _is_under(name, (_BODY,)) and not _is_under(name, steps)]
    if between:
        raise CutError(f"`{between[0]}`, which the first block builds on, is trained")
    num_frozen = next((i for i, step in enumerate(steps) if any(_is_under(n, (step,)) for n in trained)), len(steps))
    if num_frozen == 0:
        first = next(name for name in trained if _is_under(name, (steps[0],)))
        raise CutError(f"`{first}` is trained, and nothing in front of it can be kept by itself")
    frozen = steps[:num_frozen]
    kept = tuple(step for step in frozen if step in used or step == frozen[-1])
    return Cut(kept, tuple(step for step in frozen if step not in kept), (_BODY,), steps[num_frozen:])


class Front:
    """Frozen prefix of a model for images of one size.

    Built from a first batch, on which it also checks that the model, continued from the kept features, gives the same
    maps; CutError where it does not, or where a module of the prefix is random. The model must be in the mode in which
    it is trained.

    images: [B, 3, H, W]
    bytes_each: bytes of the kept features of one image
    """

    def __init__(self, model: MaskDINO, images: Tensor) -> None:
        self.cut = find_cut(model)
        restless = [n for n, m in model.named_modules() if self.cut.is_in_front(n) and m.training and _may_vary(m)]
        if restless:
            raise CutError(f"`{restless[0]}` is frozen, but in train mode")
        self.padded_size: tuple[int, int] = (images.shape[-2], images.shape[-1])
        outputs = _outputs(model, self.cut, images)
        self._forms = tuple(_Form.of(output) for output in outputs)
        if any(len(tensor) != len(images) for output in outputs for tensor in _tensors(output)):
            raise CutError(f"`{self.cut.name}` does not give one entry for each image")
        self.bytes_each = sum(tensor.nbytes for output in outputs for tensor in _tensors(output)) // len(images)
        self._prove(model, images)

    def __call__(self, model: MaskDINO, images: Tensor) -> tuple[Tensor, ...]:
        """Return the kept features of images [B, 3, H, W]: tensors [B, ...], dense."""
        outputs = _outputs(model, self.cut, images)
        return tuple(
            tensor.permute(0, *order).contiguous()
            for form, output in zip(self._forms, outputs, strict=True)
            for order, tensor in zip(form.orders, _tensors(output), strict=True)
        )

    def given(self, features: Sequence[Tensor]) -> dict[str, nn.Module]:
        """Return stand-ins for the modules of the prefix, by name; they return `features`."""
        stand_ins: dict[str, nn.Module] = {name: _Pass() for name in self.cut.skipped}
        remaining = iter(features)
        for name, form in zip(self.cut.kept, self._forms, strict=True):
            stand_ins[name] = _Given(form.output([next(remaining) for _ in form.orders]))
        return stand_ins

    def blank(self, features: Sequence[Tensor]) -> Tensor:
        """Return zeros [B, 3, H, W] without memory of their own, for modules that only read their input's size."""
        zero = torch.zeros((), device=features[0].device)
        return zero.expand(len(features[0]), 3, *self.padded_size)

    @torch.no_grad()
    def _prove(self, model: MaskDINO, images: Tensor) -> None:
        was_training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            whole = model.pixel_decoder(model.backbone(images))
            features = self(model, images)
            rest = substituted(model, self.given(features))
            continued = rest.pixel_decoder(rest.backbone(self.blank(features)))
        except RuntimeError as error:
            raise CutError(f"the backbone cannot go on from `{self.cut.name}` ({error})") from error
        finally:
            for module in was_training:
                module.training = True
        pairs = zip(_tensors(whole), _tensors(continued), strict=True)
        if not all(_is_same(one, other) for one, other in pairs):
            raise CutError(f"the backbone, continued from `{self.cut.name}`, gives other maps")


def _may_vary(module: nn.Module) -> bool:
    """Return True for a module that may drop values or change its statistics in train mode; containers do neither."""
    owns = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    return "drop" in type(module).__name__.lower() or (owns and not any(True for _ in module.children()))


class Rest(nn.Module):
    """Tail of a model, which continues from kept features. It holds the model itself and no further parameters."""

    def __init__(self, model: MaskDINO, front: Front) -> None:
        super().__init__()
        self.model = model
        self.front = front

    def forward(self, features: Sequence[Tensor], targets: Sequence[Targets] | None = None) -> Predictions:
        """Return the model's predictions for the images of `features`; `targets` as the model takes them."""
        model = substituted(self.model, self.front.given(features))
        predictions: Predictions = model(self.front.blank(features), targets)
        return predictions


def substituted(module: nn.Module, replacements: Mapping[str, nn.Module]) -> Any:
    """Return a copy of `module` with other modules at some names; it shares everything else, in its current mode.

    Only the modules on the way to a replaced one are copied, and those shallowly, as torch copies replicas.
    """
    copied = module.__new__(type(module))
    children = dict(module._modules)
    copied.__dict__ = {**vars(module), "_modules": children}
    below: dict[str, dict[str, nn.Module]] = {}
    for path, replacement in replacements.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = replacement
        else:
            children[name] = replacement
    for name, inner in below.items():
        children[name] = substituted(module.get_submodule(name), inner)
    return copied


@dataclass(frozen=True)
class _Form:
    """Layout of a module's output: its type, and the memory order of each tensor's dimensions."""

    kind: type
    orders: tuple[tuple[int, ...], ...]
    spatial_shapes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, output: Any) -> _Form:
        orders = tuple(
            tuple(sorted(range(1, tensor.dim()), key=lambda dim, t=tensor: -t.stride(dim)))  # type: ignore[misc]
            for tensor in _tensors(output)
        )
        shapes = tuple(output.spatial_shapes) if isinstance(output, PixelFeatures) else ()
        return cls(type(output), orders, shapes)

    def output(self, features: Sequence[Tensor]) -> Any:
        """Return the features in the form of the module's output."""
        tensors = [
            feature.permute(0, *(1 + order.index(dim) for dim in range(1, feature.dim())))
            for order, feature in zip(self.orders, features, strict=True)
        ]
        if self.kind is PixelFeatures:
            return PixelFeatures(tensors[0], list(self.spatial_shapes), tensors[1])
        return tensors[0] if issubclass(self.kind, Tensor) else tensors


class _Given(nn.Module):
    """Module that returns kept features."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return the kept features for any arguments."""
        return self.output


class _Pass(nn.Module):
    """Identity for inputs of any size. size_divisor: as of a backbone"""

    size_divisor = 1

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """Return the first argument."""
        return x


class _ReachedError(Exception):
    """Signal that the split point is reached and no later module needs to run."""


class _Tap(nn.Module):
    """Recorder of a module's outputs; it stops the forward pass after the last module."""

    def __init__(self, module: nn.Module, notes: list[Any], *, is_last: bool) -> None:
        super().__init__()
        self.module, self.notes, self.is_last = module, notes, is_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output, after recording it."""
        output = self.module(*args, **kwargs)
        self.notes.append(output)
        if self.is_last:
            raise _ReachedError
        return output


@torch.no_grad()
def _outputs(model: MaskDINO, cut: Cut, images: Tensor) -> list[Any]:
    """Return the outputs of the kept modules for images."""
    notes: list[Any] = []
    taps = {name: _Tap(model.get_submodule(name), notes, is_last=name == cut.name) for name in cut.kept}
    with contextlib.suppress(_ReachedError):
        substituted(model, taps)(images)
    return [_needed(output, model) if name == _BODY else output for name, output in zip(cut.kept, notes, strict=True)]


def _needed(maps: Sequence[Tensor], model: MaskDINO) -> list[Tensor]:
    """Return the backbone's maps that are used."""
    return list(maps[-1:] if model.backbone.is_plain else maps[-_NUM_MAPS:])


def _steps(model: MaskDINO) -> tuple[tuple[str, ...], frozenset[str]]:
    """The modules that make the backbone's maps one after another, and those whose outputs are among the maps."""
    body: Any = model.backbone.body
    if isinstance(body, FeatureListNet):
        maps = list(body.return_layers)[-_NUM_MAPS:]
        return tuple(f"{_BODY}.{name}" for name in body), frozenset(f"{_BODY}.{name}" for name in maps)
    blocks = next((m for name, m in model.named_modules() if name == _PLAIN_BLOCKS), None)
    if model.backbone.is_plain and blocks is not None:
        steps = tuple(f"{_PLAIN_BLOCKS}.{name}" for name, _ in blocks.named_children())
        return steps, frozenset(steps[-1:])
    return (_BODY,), frozenset((_BODY,))


def _tensors(output: Any) -> tuple[Tensor, ...]:
    match output:
        case Tensor():
            return (output,)
        case PixelFeatures():
            return output.memory, output.mask_features
    return tuple(output)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal: exactly on a CPU, elsewhere within the error of any precision."""
    if one.device.type == "cpu":
        return torch.equal(one, other)
    return torch.allclose(one.float(), other.float(), rtol=0.01, atol=0.01 * float(one.abs().max()))


def _is_under(name: str, roots: Sequence[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)
