"""IA3, VeRA and FourierFT of ours, in the form of the peft library."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.inject import Attached
from vispeft.peft.interop.peft_library.contents import TheirContents, no_counterpart
from vispeft.peft.interop.peft_library.names import Tree
from vispeft.peft.methods.fourier import FourierFT, Spectrum
from vispeft.peft.methods.input_scale import InputGain
from vispeft.peft.methods.scale_shift import GainOffset
from vispeft.peft.methods.vera import LinearVeRA, Projections
from vispeft.peft.methods.weight_update import LinearUpdate


def write_ia3(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the IA3 of a model, with ones on the rows of no part."""
    contents = TheirContents({"peft_type": "IA3"})
    inputs: list[str] = []
    for item in items:
        module = tree.modules.get(item.site)
        if item.site in contents.tensors or not isinstance(module, nn.Linear | nn.Conv2d):
            raise no_counterpart(f"`{item.key}`")
        is_input = isinstance(item.delta, InputGain)
        inputs += [re.escape(item.site)] if is_input else []
        shape = (1, -1, 1, 1) if isinstance(module, nn.Conv2d) else (1, -1) if is_input else (-1, 1)
        contents.tensors[item.site] = {"ia3_l": _whole_scales(item.delta).view(shape)}
    # a pattern of whole names, for names would be compared by their ends
    contents.options["feedforward_modules"] = "|".join(inputs) or []
    return contents


def _whole_scales(delta: nn.Module) -> Tensor:
    """Return the scales of the whole input or output: those of its parts, ones elsewhere."""
    if isinstance(delta, InputGain):
        return delta.gain.detach()
    assert isinstance(delta, GainOffset)
    scales = torch.ones(delta.outputs, dtype=delta.gain.dtype, device=delta.gain.device)
    for rows, part in zip(delta.rows, delta.gain.detach().chunk(len(delta.rows)), strict=True):
        scales[rows] = part
    return scales


def write_vera(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the VeRA of a model, with its projections."""
    contents = TheirContents({"peft_type": "VERA", "save_projection": True}, bias="vera_only")
    shared: dict[Projections, None] = {}
    for item in items:
        delta = item.delta
        if not isinstance(delta, LinearVeRA) or item.site in contents.tensors:
            raise no_counterpart(f"`{item.key}`")
        contents.tensors[item.site] = {"vera_lambda_d": delta.scale_d, "vera_lambda_b": delta.scale_b}
        shared[delta.projections] = None
    if len(shared) > 1:
        raise PlanError(
            "The peft library has one pair of projections for all sites of VeRA, but this model has more. Save it with "
            "`save_adapter`."
        )
    (projections,) = shared
    a, b = projections.get_buffer("a"), projections.get_buffer("b")
    contents.shared = {"base_model.vera_A": a, "base_model.vera_B": b}
    contents.options["r"] = a.shape[0]
    return contents


def write_fourierft(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the FourierFT of a model."""
    methods = [item.delta.method for item in items]
    assert all(isinstance(method, FourierFT) for method in methods)
    settings = {(method.scale, method.seed) for method in methods if isinstance(method, FourierFT)}
    if len(settings) > 1:
        raise PlanError(
            "The peft library has one scale and one seed for all sites of FourierFT, but this model has more. Save it "
            "with `save_adapter`."
        )
    scale, seed = settings.pop()
    contents = TheirContents({"peft_type": "FOURIERFT", "scaling": scale, "random_loc_seed": seed}, bias="fourier_only")
    counts: dict[str, int] = {}
    for item in items:
        update = item.delta.update if isinstance(item.delta, LinearUpdate) else None
        if not isinstance(update, Spectrum) or item.site in contents.tensors:
            raise no_counterpart(f"`{item.key}`")
        _check_places(item, update, seed)
        counts[item.site] = update.spectrum.numel()
        contents.tensors[item.site] = {"fourierft_spectrum": update.spectrum}
    count = Counter(counts.values()).most_common(1)[0][0]
    patterns = {site: value for site, value in counts.items() if value != count}
    for site, value in counts.items():
        # the library's rule: the first pattern that matches after a dot, else the name itself
        found = next((key for key in patterns if re.match(rf".*\.{key}$", site)), site)
        if patterns.get(found, count) != value:
            raise no_counterpart(f"the number of frequencies at `{site}`, a name in which another one ends")
    contents.options |= {"n_frequency": count, "n_frequency_pattern": patterns}
    return contents


def _check_places(item: Attached, update: Spectrum, seed: int) -> None:
    """Refuse places that the library would not draw from this seed, as of files of earlier versions."""
    places = update.places.get_buffer(update.name)
    size = update.shape[0] * update.shape[1]
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: len(places)]
    if not torch.equal(places.cpu(), drawn):
        raise no_counterpart(f"the places of `{item.key}`, which its seed does not draw")
