"""Deltas put into a model and taken out again.

A delta for a module becomes a child of that module, under its method's name (`lora`, a second one `lora_2`).
The forward hooks of `peft/hooks.py` run the deltas of a module in the order in which they were attached. A delta for a
parameter is part of a parametrization, and state-dict hooks give and accept the base's own keys. Where a module has
both, those of the parameter come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from vispeft.errors import PlanError
from vispeft.peft.build import build_deltas
from vispeft.peft.hooks import SiteHooks, deltas_of
from vispeft.peft.methods.base import Delta, WeightDelta, full_precision
from vispeft.peft.methods.mixture import Chain
from vispeft.peft.named import Attachment, NamedAdapters
from vispeft.peft.plan import Plan
from vispeft.peft.quantization.kinds import prepare, refuse_unsupported
from vispeft.peft.targets import Names, Roles, Site
from vispeft.peft.trainable import refuse_integers, refuse_uninitialized
from vispeft.peft.wrappers import unwrapped

_MARK = "_vispeft_injection"


@dataclass(frozen=True)
class Injection:
    """Record of one call of `inject` on a model.

    trained: first names of the parameters that are trained in full
    thawed_before: first names of the parameters that had gradients before
    handles: of the hooks that were registered
    attachments: the deltas with their sites, in the plan's order
    hooks: those of the deltas
    named: the named adapters, of a model that has such
    """

    plan: Plan
    trained: tuple[str, ...]
    thawed_before: tuple[str, ...]
    handles: tuple[RemovableHandle, ...]
    attachments: tuple[Attachment, ...]
    hooks: SiteHooks
    named: NamedAdapters | None = None


@dataclass(frozen=True)
class Attached:
    """One delta in a model: at `site`, under `name`."""

    site: str
    name: str
    delta: Delta | WeightDelta

    @property
    def key(self) -> str:
        """The prefix of its tensors' names in the model's state dict, without the last dot."""
        return f"{self.site}.{self.name}"


class WeightForm(nn.Module):
    """The parametrization that holds a parameter's deltas.

    order: names of the owner's parameters as they were before
    """

    def __init__(self, order: tuple[str, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, weight: Tensor) -> Tensor:
        """Return the parameter after its deltas in turn, in its own precision also under autocast."""
        with full_precision(weight):
            for delta in self.children():
                if delta.is_active:
                    weight = delta(weight)
        return weight


def inject(model: nn.Module, plan: Plan, roles: Roles | None = None) -> None:
    """Freeze the model, attach the plan's deltas and thaw what the plan trains in full, in place.

    Outputs stay bit-identical until the first optimizer step, but for methods that cannot start as the identity
    (`Method.is_identity_at_start`). On an error the model is as it was.
    roles: places of this model by the names that patterns write as `@role`
    """
    model = unwrapped(model)
    _refuse_another_plan(model)
    names = Names(model)
    refuse_uninitialized(names)
    refuse_unsupported(model)
    for pattern in plan.train:
        names.refuse_quantized(pattern, roles)
    trained = list(dict.fromkeys(name for pattern in plan.train for name in names.trained(pattern, roles)))
    refuse_integers(names, trained)
    hooks = SiteHooks()
    attachments = tuple(build_deltas(names, plan, roles, trained, hooks.tables))
    install(model, plan, trained, attachments, hooks)


def install(
    model: nn.Module, plan: Plan, trained: Sequence[str], attachments: tuple[Attachment, ...], hooks: SiteHooks
) -> None:
    """Freeze a plain model, attach deltas that were built for it and thaw what is trained in full, in place.

    trained: first names of the parameters that are trained in full
    """
    thawed_before = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    prepare(model)
    model.requires_grad_(False)
    for name in trained:
        model.get_parameter(name).requires_grad_(True)
    for _, delta in attachments:
        delta.train(model.training)
    handles = [handle for site, delta in attachments for handle in attach(site, delta, hooks)]
    if attachments:
        handles += hooks.add_to_sources(model)
    handles += hooks.add_to_checkpoints(model)
    record(model, Injection(plan, tuple(trained), thawed_before, tuple(handles), attachments, hooks))


def record(model: nn.Module, injection: Injection) -> None:
    """Mark a model as injected."""
    setattr(model, _MARK, injection)


def remove(model: nn.Module) -> None:
    """Take every delta out, in place: the original model, with fully trained parameters at their trained values."""
    model = unwrapped(model)
    injection = injection_of(model)
    for handle in injection.handles:
        handle.remove()
    for owner in list(model.modules()):
        _drop_forms(owner)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Delta):
                delattr(module, name)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in injection.thawed_before)
    delattr(model, _MARK)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the deltas off for the block; fully trained parameters keep their values."""
    with switched_off([item.delta for item in attached(model)]):
        yield


@contextmanager
def switched_off(deltas: Sequence[Delta | WeightDelta]) -> Iterator[None]:
    """Switch some deltas off for the block."""
    active = [delta for delta in deltas if delta.is_active]
    for delta in active:
        delta.is_active = False
    try:
        yield
    finally:
        for delta in active:
            delta.is_active = True


@contextmanager
def recorded(model: nn.Module) -> Iterator[tuple[set[str], list[str]]]:
    """Record, for the block, the keys of the deltas that have run to their end, and of those that run now."""
    finished: set[str] = set()
    running: list[str] = []
    handles: list[RemovableHandle] = []

    def watch(key: str, delta: nn.Module) -> None:
        def leave(*_: Any) -> None:
            finished.add(running.pop())

        handles.append(delta.register_forward_pre_hook(lambda *_: running.append(key)))
        handles.append(delta.register_forward_hook(leave))

    for item in attached(model):
        watch(item.key, item.delta)
    try:
        yield finished, running
    finally:
        for handle in handles:
            handle.remove()


def is_injected(model: nn.Module) -> bool:
    """Return True for a model on which `inject` was called, and neither `remove` nor `merge` since."""
    return _MARK in vars(unwrapped(model))


def injection_of(model: nn.Module) -> Injection:
    """Return the record of `inject` on this model. Raises PlanError where there is none."""
    if not is_injected(model):
        raise PlanError("The model has no plan. Call `inject(model, plan)` first, on this very module.")
    injection: Injection = vars(unwrapped(model))[_MARK]
    return injection


def attached(model: nn.Module) -> list[Attached]:
    """Return every delta in the model, in the model's order and, at one site, in the order in which they run.

    Those of named adapters are parts of one delta a site.
    """
    found: list[Attached] = []
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, Chain):
            continue
        for parameter, form in module_forms(module):
            site = f"{name}.{parameter}" if name else parameter
            found += [
                Attached(site, key, delta) for key, delta in form.named_children() if isinstance(delta, WeightDelta)
            ]
        found += [Attached(name, key, child) for key, child in module.named_children() if isinstance(child, Delta)]
    return found


def _refuse_another_plan(model: nn.Module) -> None:
    """Refuse a model that has a plan, holds a part that has one, or is a part of a model that has one."""
    if is_injected(model):
        raise PlanError("The model has a plan already. Call `remove` or `merge` first.")
    inner = next((name for name, module in model.named_modules() if _MARK in vars(module)), None)
    if inner is not None:
        raise PlanError(
            f"`{inner}`, a part of the model, has a plan already. Call `remove` or `merge` on that part first, or name "
            "all sites in one plan for the whole model."
        )
    deltas = attached(model)
    if deltas:
        raise PlanError(
            f"The model is a part of another model, whose plan attached `{deltas[0].key}`. Call `remove` or `merge` on "
            "that model first, or name all sites in one plan for it."
        )


def attach(site: Site, delta: Delta | WeightDelta, hooks: SiteHooks) -> list[RemovableHandle]:
    """Make a delta part of its site. Returns the handles of new hooks."""
    if site.parameter is None:
        assert isinstance(delta, Delta)
        before = deltas_of(site.module)
        site.module.add_module(free_name(site.module, delta), delta)
        return hooks.add_to_site(site.module, delta, before)
    handles = []
    forms = dict(module_forms(site.module))
    order = next(iter(forms.values())).order if forms else tuple(dict(site.module.named_parameters(recurse=False)))
    if not forms:
        handles.append(site.module.register_state_dict_post_hook(_give_base_keys))  # type: ignore[no-untyped-call]
        handles.append(site.module.register_load_state_dict_pre_hook(_accept_base_keys))  # type: ignore[no-untyped-call]
    if site.parameter not in forms:
        forms[site.parameter] = WeightForm(order)
        parametrize.register_parametrization(site.module, site.parameter, forms[site.parameter])
    form = forms[site.parameter]
    form.add_module(free_name(form, delta), delta)
    return handles


def free_name(owner: nn.Module, delta: Delta | WeightDelta) -> str:
    """Return the method's name, with a number from 2 where the owner has that name already."""
    name, number = delta.method.name, 2
    while getattr(owner, name, None) is not None:
        name, number = f"{delta.method.name}_{number}", number + 1
    return name


def module_forms(module: nn.Module) -> list[tuple[str, WeightForm]]:
    """Return the parameters of the module that have deltas, with the parametrizations that hold these."""
    if not parametrize.is_parametrized(module):
        return []
    assert isinstance(module.parametrizations, nn.ModuleDict)
    return [
        (name, form)
        for name, forms in module.parametrizations.items()
        for form in forms.children()
        if isinstance(form, WeightForm)
    ]


def base_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters by name; of those with deltas of ours alone, the frozen value."""
    parameters: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    for name, _ in module_forms(module):
        if len(module.get_submodule(f"parametrizations.{name}")._modules) == 1:
            parameters[name] = module.get_parameter(f"parametrizations.{name}.original")
    return parameters


def _drop_forms(owner: nn.Module) -> None:
    """Take our parametrizations off a module and put its parameters back in their order.

    Torch's own removal does not do: it deletes the property from the class, which a deep copy of the module shares.
    """
    forms = module_forms(owner)
    if not forms:
        return
    assert isinstance(owner.parametrizations, nn.ModuleDict)
    originals = {name: owner.get_parameter(f"parametrizations.{name}.original") for name, _ in forms}
    if len(originals) == len(owner.parametrizations):
        del owner.parametrizations
        owner.__class__ = type(owner).__bases__[0]
        for name, parameter in originals.items():
            owner.register_parameter(name, parameter)
    else:
        for name in originals:
            parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
    for name in [name for name in forms[0][1].order if name in dict(owner.named_parameters(recurse=False))]:
        parameter = owner.get_parameter(name)
        delattr(owner, name)
        owner.register_parameter(name, parameter)


def _key_pairs(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """Return the prefixes of the parametrized keys of a module, with those of the base."""
    pairs = []
    for name, _ in module_forms(module):
        inner = f"{prefix}parametrizations.{name}"
        pairs += [(f"{inner}.original", f"{prefix}{name}"), (f"{inner}.0.", f"{prefix}{name}.")]
    return pairs


def _give_base_keys(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename keys after `state_dict`: `parametrizations.weight.original` to `weight`, a delta's to `weight.lora.a`."""
    for inner, outer in _key_pairs(module, prefix):
        for key in [key for key in state if key.startswith(inner)]:
            state[outer + key[len(inner) :]] = state.pop(key)


def _accept_base_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename keys before `load_state_dict`, in reverse."""
    for inner, outer in _key_pairs(module, prefix):
        for key in [key for key in state if key == outer or (outer.endswith(".") and key.startswith(outer))]:
            state[inner + key[len(outer) :]] = state.pop(key)
