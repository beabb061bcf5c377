"""A model cut in two: a frozen front, whose output can be kept, and the rest, which goes on from what was kept.

Neither half is a new model. Each works on shallow copies of the modules that hold the cut, in which stand-ins replace
what does not run; every parameter, buffer and other module is the model's own.
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
from vispeft.models.mask_dino import MaskDINO
from vispeft.models.pixel_decoder import PixelFeatures
from vispeft.structures import Predictions, Targets

_BODY = "backbone.body"
_PLAIN_BLOCKS = f"{_BODY}.model.blocks"
# the backbone gives its last four maps, a plain one makes them of the last
_NUM_MAPS = 4


class CutError(ConfigError):
    """A model without a frozen front to keep; the message is the reason, as a clause."""


@dataclass(frozen=True)
class Cut:
    """Where a model is cut, by module names.

    kept: modules whose outputs are kept, in the order in which they run
    skipped: modules in front whose outputs nobody needs behind the cut
    front, behind: what is in front of the cut: everything under `front` that is not under `behind`
    """

    kept: tuple[str, ...]
    skipped: tuple[str, ...]
    front: tuple[str, ...]
    behind: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last module in front of the cut."""
        return self.kept[-1]

    def is_in_front(self, name: str) -> bool:
        """Whether the module, parameter or buffer of this name is in front of the cut."""
        return _is_under(name, self.front) and not _is_under(name, self.behind)


def find_cut(model: MaskDINO) -> Cut:
    """The last place before which nothing is trained: behind a block or stage of the backbone, or the pixel decoder.

    What is trained is what requires gradients. CutError where the very first part of the model is trained.
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
    """A model's frozen front for images of one size.

    Made from a first batch, by which it is also proven that the model, continued from the kept features, gives the same
    maps; CutError where it does not, or where something in front is random. The model must be in the mode in which it
    is trained.

    images: [B, 3, H, W]
    bytes_each: size of what is kept of one image
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
        """What is kept of images [B, 3, H, W]: tensors [B, ...], dense."""
        outputs = _outputs(model, self.cut, images)
        return tuple(
            tensor.permute(0, *order).contiguous()
            for form, output in zip(self._forms, outputs, strict=True)
            for order, tensor in zip(form.orders, _tensors(output), strict=True)
        )

    def given(self, features: Sequence[Tensor]) -> dict[str, nn.Module]:
        """Stand-ins for the modules in front, by name, that give `features` in their place."""
        stand_ins: dict[str, nn.Module] = {name: _Pass() for name in self.cut.skipped}
        remaining = iter(features)
        for name, form in zip(self.cut.kept, self._forms, strict=True):
            stand_ins[name] = _Given(form.output([next(remaining) for _ in form.orders]))
        return stand_ins

    def blank(self, features: Sequence[Tensor]) -> Tensor:
        """[B, 3, H, W] zeros without memory of their own, for what asks only for the size of its input."""
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
    """A model that goes on from the features of its front. It holds the model itself, and no parameters beside it."""

    def __init__(self, model: MaskDINO, front: Front) -> None:
        super().__init__()
        self.model = model
        self.front = front

    def forward(self, features: Sequence[Tensor], targets: Sequence[Targets] | None = None) -> Predictions:
        """What the model says of the images that `features` were made of; `targets` as the model takes them."""
        model = substituted(self.model, self.front.given(features))
        predictions: Predictions = model(self.front.blank(features), targets)
        return predictions


def substituted(module: nn.Module, replacements: Mapping[str, nn.Module]) -> Any:
    """A copy of `module` with other modules at some names; it shares everything else, in the mode it has now.

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
    """What a module gives: of which kind, and in which order the dimensions of each tensor lie in memory."""

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
        """The features as the module gives them."""
        tensors = [
            feature.permute(0, *(1 + order.index(dim) for dim in range(1, feature.dim())))
            for order, feature in zip(self.orders, features, strict=True)
        ]
        if self.kind is PixelFeatures:
            return PixelFeatures(tensors[0], list(self.spatial_shapes), tensors[1])
        return tensors[0] if issubclass(self.kind, Tensor) else tensors


class _Given(nn.Module):
    """Gives what was kept."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """Whatever it is called with."""
        return self.output


class _Pass(nn.Module):
    """Hands its input on, of whatever size it is. size_divisor: as a backbone tells it"""

    size_divisor = 1

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """The first argument."""
        return x


class _ReachedError(Exception):
    """The cut is reached: nothing behind it needs to run."""


class _Tap(nn.Module):
    """Runs a module and notes what it gives; stops the model behind the last one."""

    def __init__(self, module: nn.Module, notes: list[Any], *, is_last: bool) -> None:
        super().__init__()
        self.module, self.notes, self.is_last = module, notes, is_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        output = self.module(*args, **kwargs)
        self.notes.append(output)
        if self.is_last:
            raise _ReachedError
        return output


@torch.no_grad()
def _outputs(model: MaskDINO, cut: Cut, images: Tensor) -> list[Any]:
    """What the kept modules give for images."""
    notes: list[Any] = []
    taps = {name: _Tap(model.get_submodule(name), notes, is_last=name == cut.name) for name in cut.kept}
    with contextlib.suppress(_ReachedError):
        substituted(model, taps)(images)
    return [_needed(output, model) if name == _BODY else output for name, output in zip(cut.kept, notes, strict=True)]


def _needed(maps: Sequence[Tensor], model: MaskDINO) -> list[Tensor]:
    """Of the backbone's maps those that are used."""
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
    """To the bit on a CPU; elsewhere as near as arithmetic of any precision that does not repeat itself."""
    if one.device.type == "cpu":
        return torch.equal(one, other)
    return torch.allclose(one.float(), other.float(), rtol=0.01, atol=0.01 * float(one.abs().max()))


def _is_under(name: str, roots: Sequence[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)
