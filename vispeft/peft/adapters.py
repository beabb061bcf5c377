"""Several named adapters on one base: loaded, switched, mixed, one for each image of a batch, dropped."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vispeft.errors import PlanError
from vispeft.io.names import did_you_mean
from vispeft.peft.hooks import SiteHooks
from vispeft.peft.inject import Injection, attach, free_name, injection_of, install, is_injected, record, remove
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.image_rows import SEPARATELY, ImageBatch
from vispeft.peft.methods.mixture import Chain, Mixture, SiteMixture, WeightMixture, weighted
from vispeft.peft.named import NamedAdapter, NamedAdapters
from vispeft.peft.owner_hooks import BatchHooks, OwnerHooks
from vispeft.peft.places import Aliases, full_names, place_of
from vispeft.peft.plan import Plan
from vispeft.peft.reads import reads_any
from vispeft.peft.targets import Site
from vispeft.peft.wrappers import unwrapped


def adapters(model: nn.Module) -> dict[str, float]:
    """Return the weights of the model's named adapters, by name; 0 for those that are not active."""
    named = injection_of(model).named if is_injected(model) else None
    return {} if named is None else {name: named.weights.get(name, 0.0) for name in named.adapters}


def set_adapters(model: nn.Module, active: str | Mapping[str, float] | None) -> None:
    """Make one named adapter active, several with their weights, or none, in place.

    The output y of a module with deltas becomes `y + sum_i w_i (delta_i(x, y) - y)`, a parameter W with deltas
    `W + sum_i w_i (delta_i(W) - W)`, and what adapters train in full `base + sum_i w_i (trained_i - base)`. Weights may
    have any sign and any sum.
    """
    named = _named(model)
    weights = {} if active is None else {active: 1.0} if isinstance(active, str) else dict(active)
    _check_known(named, weights)
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise PlanError(f"The weight of the adapter `{name}` must be finite, but is {weight}.")
    _activate(unwrapped(model), named, {name: float(weight) for name, weight in weights.items() if weight})


def drop_adapter(model: nn.Module, name: str) -> None:
    """Take a named adapter out, in place. After the last one the model is the plain base, without a plan."""
    named = _named(model)
    _check_known(named, [name])
    with _plain(unwrapped(model), named):
        del named.adapters[name]
        named.weights.pop(name, None)


@contextmanager
def adapter_per_image(model: nn.Module, images: Sequence[str | None]) -> Iterator[None]:
    """Give each image of the batches in the block its own adapter; None is the plain base.

    The images share one pass over what is frozen. A module whose own parameters an adapter changes runs once more for
    the images of that adapter. Results equal those of `set_adapters` for each image, within rounding.
    """
    model, named = unwrapped(model), _named(model)
    if not images:
        raise PlanError("`images` must name an adapter, or None, for each image of the batch, but is empty.")
    used = dict.fromkeys(name for name in images if name is not None)
    _check_known(named, used)
    weights = named.weights
    _activate(model, named, {})
    named.batch.was_called = False
    for owner in named.owners:
        owner.was_called = False
        owner.fit_values(model.get_submodule(owner.site))
    try:
        with named.batch_of(tuple(images)):
            yield
            _refuse_uncalled(model, named)
    finally:
        named.batch.end()
        _activate(model, named, weights)


def add_named(model: nn.Module, name: str, trained: Sequence[str], load: Callable[[], Mapping[str, object]]) -> None:
    """Make what `load` injects into the plain model one more of its named adapters, and the active one, in place.

    trained: names of the parameters that it trains in full
    load: injects a plan with its values, or raises and leaves the model as it was; returns the metadata
    """
    model = unwrapped(model)
    named = _named_or_new(model)
    _check_new_name(named, name)
    with _plain(model, named):
        known = dict(model.named_parameters(remove_duplicate=False))
        keys = [key for key in trained if key in known]
        before = _values(model, full_names(model, keys))
        metadata = load()
        injection = injection_of(model)
        values = _values(model, before)
        # a module whose own parameters and buffers all adapters share runs once for all images
        same = [key for key in before.keys() - set(keys) if before[key].equal(values[key])]
        for key in same:
            del before[key], values[key]
        remove(model)
        _write(model, before)
        for _, delta in injection.attachments:
            delta.requires_grad_(False)
        named.adapters[name] = NamedAdapter(
            injection.plan, injection.attachments, injection.hooks, values, dict(metadata)
        )
        named.base_values |= before
        named.weights = {name: 1.0}


@contextmanager
def alone(model: nn.Module, name: str) -> Iterator[NamedAdapter]:
    """Give the model one of its adapters as its only plan for the block, as if it had been loaded without a name."""
    model, named = unwrapped(model), _named(model)
    _check_known(named, [name])
    adapter = named.adapters[name]
    with _plain(model, named):
        try:
            _write(model, adapter.values)
            install(model, adapter.plan, adapter.plan.train, adapter.attachments, adapter.hooks)
            yield adapter
        finally:
            remove(model)
            _write(model, named.base_values)


def _named(model: nn.Module) -> NamedAdapters:
    """Return the record of the model's named adapters, outside of `adapter_per_image`."""
    named = injection_of(model).named if is_injected(model) else None
    if named is None:
        raise PlanError(
            "The model has no named adapters. Load them into the plain base by `load_adapter(model, path, name=...)`."
        )
    if named.batch.adapters:
        raise PlanError("This cannot be called inside of `adapter_per_image`. Leave its block first.")
    return named


def _named_or_new(model: nn.Module) -> NamedAdapters:
    """Return the record of the model's named adapters, a new one for a model without a plan."""
    if not is_injected(model):
        return NamedAdapters()
    if injection_of(model).named is None:
        raise PlanError(
            "The model has a plan without a name, so it can have no named adapters. Save it by `save_adapter`, and "
            "load both files by name into the plain base."
        )
    return _named(model)


def _check_known(named: NamedAdapters, names: Sequence[str] | Mapping[str, object]) -> None:
    """Refuse names of adapters that the model does not have."""
    for name in names:
        if name not in named.adapters:
            raise PlanError(
                f"The model has no adapter `{name}`.{did_you_mean(str(name), named.adapters)} It has "
                f"{', '.join(named.adapters)}."
            )


def _check_new_name(named: NamedAdapters, name: str) -> None:
    """Refuse a name that is taken, or that no child of a module can have."""
    if name in named.adapters:
        raise PlanError(
            f"The model has an adapter `{name}` already. Choose another name, or call `drop_adapter` first."
        )
    method = Mixture(ImageBatch())
    for mixture in (SiteMixture(method, ""), WeightMixture(method, "")):
        try:
            mixture.add_module(name, nn.Identity())
        except (KeyError, TypeError) as error:
            raise PlanError(
                f"{name!r} cannot be the name of an adapter: torch says {error}. Choose another."
            ) from error


def _refuse_around(named: NamedAdapters, name: str) -> None:
    """Refuse an adapter that changes the inputs of modules, for a mixture."""
    for mixture in named.mixtures:
        if (chain := mixture.chain(name)) is not None and chain.is_around:
            raise PlanError(
                f"The adapter `{name}` changes the inputs of `{mixture.site}`, which cannot be mixed or "
                f"weighted. Make it the only active one by `set_adapters(model, {name!r})`."
            )


def _refuse_uncalled(model: nn.Module, named: NamedAdapters) -> None:
    """Refuse a result that depends on parameters trained in full of a module that was not called."""
    for owner in named.owners:
        part = next((part for part in owner.parts if part.values), None)
        if not named.batch.was_called or part is None or owner.was_called:
            continue
        if owner.is_read is None and named.batch.run_first is not None:
            tensors = [getattr(*place_of(model.get_submodule(owner.site), leaf).holder) for leaf in part.values]
            with named.batch.probing():
                owner.is_read = reads_any(named.batch.run_first, tensors)
        if owner.is_read is not False:
            leaf = next(iter(part.values))
            raise PlanError(
                f"The adapter `{part.adapter}` trains `{leaf}` of `{owner.site}` in full, but the model read it "
                f"without a call of this module, so that the images had the base's values. {SEPARATELY}"
            )


def _values(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of parameters and buffers."""
    return {name: place_of(model, name).tensor.clone() for name in names}


@torch.no_grad()
def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers, in place."""
    for name, value in values.items():
        place_of(model, name).tensor.copy_(value)


def _activate(model: nn.Module, named: NamedAdapters, weights: dict[str, float]) -> None:
    """Make the adapters with these weights the active ones."""
    is_single = list(weights.values()) in ([], [1.0])
    if not is_single:
        for name in weights:
            _refuse_around(named, name)
    changed = {key for name in {*named.weights, *weights} for key in named.adapters[name].values}
    _write(model, {key: _mixed_value(named, key, weights) for key in named.base_values if key in changed})
    # in double precision; without dimensions, so that results keep the precision of the other factor
    factors = {name: torch.tensor(weight, dtype=torch.float64) for name, weight in weights.items()}
    for mixture in named.mixtures:
        chains = {name: chain for name in weights if (chain := mixture.chain(name)) is not None}
        mixture.running = list(chains.values())
        mixture.weights = None if is_single else [factors[name] for name in chains]
    named.weights = weights


def _mixed_value(named: NamedAdapters, key: str, weights: Mapping[str, float]) -> Tensor:
    """Return the value of what some adapters train in full under the weights of all."""
    values = [
        (weight, named.adapters[name].values[key])
        for name, weight in weights.items()
        if key in named.adapters[name].values
    ]
    return weighted(named.base_values[key], values)


@contextmanager
def _plain(model: nn.Module, named: NamedAdapters) -> Iterator[None]:
    """Make the model the plain base for the block; afterwards it has the adapters that `named` holds then."""
    if is_injected(model):
        remove(model)
        _write(model, named.base_values)
    try:
        yield
    finally:
        kept = {key for adapter in named.adapters.values() for key in adapter.values}
        named.base_values = {key: value for key, value in named.base_values.items() if key in kept}
        if named.adapters:
            _attach_all(model, named)


def _attach_all(model: nn.Module, named: NamedAdapters) -> None:
    """Attach the deltas of all adapters to the plain model, one mixture a site, and activate those with weights."""
    thawed_before = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model.requires_grad_(False)
    method, hooks = Mixture(named.batch), SiteHooks()
    mixtures = _mixtures(method, named)
    named.mixtures = [mixture for _, mixture in mixtures]
    named.owners, handles = _hook_owners(model, named, mixtures)
    for site, mixture in mixtures:
        handles += attach(site, mixture, hooks)
    for owner in named.owners:
        # before the deltas of the same module, which get its output
        module = model.get_submodule(owner.site)
        handles.append(module.register_forward_hook(owner.after, with_kwargs=True, prepend=True))
    for adapter in named.adapters.values():
        handles += adapter.hooks.add_to_sources(model)
    handles += hooks.add_to_checkpoints(model)
    batch_hooks = BatchHooks(named.batch)
    handles.append(model.register_forward_pre_hook(batch_hooks.before, with_kwargs=True))
    handles.append(model.register_forward_hook(batch_hooks.after))
    record(model, Injection(Plan(), (), thawed_before, tuple(handles), (), hooks, named))
    weights, named.weights = named.weights, {}
    _activate(model, named, weights)


def _mixtures(method: Mixture, named: NamedAdapters) -> list[tuple[Site, SiteMixture | WeightMixture]]:
    """Return the sites of all adapters, each with its mixture of their deltas."""
    found: dict[tuple[nn.Module, str | None], tuple[Site, SiteMixture | WeightMixture]] = {}
    for name, adapter in named.adapters.items():
        for site, delta in adapter.attachments:
            key = site.module, site.parameter
            if key not in found:
                context = Context((site,))
                mixture: SiteMixture | WeightMixture = (
                    method.for_module(site.module, context)
                    if site.parameter is None
                    else method.for_parameter(site.module.get_parameter(site.parameter), context)
                )
                found[key] = site, mixture
            mixture = found[key][1]
            if (chain := mixture.chain(name)) is None:
                mixture.add_module(name, chain := Chain())
            chain.add_module(free_name(chain, delta), delta)
    return list(found.values())


def _hook_owners(
    model: nn.Module, named: NamedAdapters, mixtures: Sequence[tuple[Site, SiteMixture | WeightMixture]]
) -> tuple[list[OwnerHooks], list[RemovableHandle]]:
    """Hook the modules whose own parameters an adapter changes."""
    values: dict[str, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    forms: dict[str, list[WeightMixture]] = defaultdict(list)
    inner: dict[str, list[WeightMixture]] = defaultdict(list)
    aliases = Aliases(model)
    for name, adapter in named.adapters.items():
        for key, value in adapter.values.items():
            # a shared parameter in every module that has it
            for alias in aliases.of(key):
                site, leaf = _reader(model, alias)
                values[site][name][leaf] = value
    for _, mixture in mixtures:
        if isinstance(mixture, WeightMixture):
            reader = _reader(model, mixture.site)[0]
            forms[reader].append(mixture)
            if reader:
                inner[reader.rpartition(".")[0]].append(mixture)
    owners, handles = [], []
    for site in dict.fromkeys((*values, *forms, *inner)):
        module = model.get_submodule(site)
        mixtures_here = forms.get(site, []), inner.get(site, [])
        hooks = OwnerHooks(site, named.batch, values.get(site, {}), mixtures_here, named.batch_of)
        owners.append(hooks)
        handles.append(module.register_forward_pre_hook(hooks.before))
    return owners, handles


def _reader(model: nn.Module, name: str) -> tuple[str, str]:
    """Return the module that reads a parameter or buffer when it is called, and the name inside it.

    An nn.MultiheadAttention reads its output projection without a call.
    """
    owner, _, leaf = name.rpartition(".")
    parent, _, child = owner.rpartition(".")
    if child == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        return parent, f"{child}.{leaf}"
    return owner, leaf
