"""Deltas of a plan, built for the sites of a model but not yet part of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta
from vispeft.peft.methods.context import Context, Tables
from vispeft.peft.plan import Plan
from vispeft.peft.targets import Names, Roles, Site
from vispeft.peft.trainable import refuse_unreal
from vispeft.peft.wrappers import unwrapped


@dataclass(frozen=True)
class _Entry:
    """One delta to build: a site that `pattern` of the plan names, and its method."""

    pattern: str
    site: Site
    method: Method


def build_deltas(
    names: Names, plan: Plan, roles: Roles | None, trained: list[str], tables: Tables
) -> Iterator[tuple[Site, Delta | WeightDelta]]:
    """Yield the deltas of a plan with their sites. PlanError begins with pattern and site.

    trained: names of the parameters that the plan trains in full
    tables: what the hooks of the injection record
    """
    entries = [
        _Entry(pattern, site, method) for pattern, method in plan.entries() for site in names.sites(pattern, roles)
    ]
    for entry, context in _in_context(entries, names, tables):
        try:
            delta = _build(entry, context, trained)
        except PlanError as error:
            raise PlanError(f"`{entry.pattern}` at `{entry.site.name}`: {error}") from error
        if delta is not None:
            yield entry.site, delta


def _in_context(entries: list[_Entry], names: Names, tables: Tables) -> Iterator[tuple[_Entry, Context]]:
    """Yield every entry with its context, in the plan's order.

    Methods are grouped by equal options and not by pattern: an adapter file has a pattern for each site, and must give
    the same groups.
    """
    groups: list[list[_Entry]] = []
    for entry in entries:
        group = next((group for group in groups if group[0].method == entry.method), None)
        if group is None:
            groups.append([entry])
        else:
            group.append(entry)
    contexts: dict[int, Context] = {}
    for group in groups:
        group.sort(key=lambda entry: names.position(entry.site))
        sites = tuple(entry.site for entry in group)
        # one list for the whole group, which the first call of `Context.shared` fills
        shared: list[object] = []
        contexts |= {id(entry): Context(sites, index, tables, shared) for index, entry in enumerate(group)}
    return ((entry, contexts[id(entry)]) for entry in entries)


def _build(entry: _Entry, context: Context, trained: list[str]) -> Delta | WeightDelta | None:
    """Return the delta of an entry."""
    site = entry.site
    if site.parameter is not None:
        if site.name in trained:
            raise PlanError("This parameter is trained in full as well. Choose one of the two.")
        if parametrize.is_parametrized(site.module, site.parameter):
            raise PlanError("This parameter is parametrized already, by another library or by hand.")
        parameter = site.module.get_parameter(site.parameter)
        refuse_unreal(parameter)
        return entry.method.for_parameter(parameter, context)
    if unwrapped(site.module) is not site.module:
        raise PlanError(
            f"A {type(site.module).__name__} is a wrapper, which adds a prefix to names. Call `inject` before this "
            f"part is compiled or wrapped; or name the module inside, if it is wrapped wherever the adapter is used."
        )
    if isinstance(site.module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        last = next(reversed(list(site.module.named_children())), ("", None))[0]
        raise PlanError(
            f"A {type(site.module).__name__} runs its children one by one and can have no delta among them. "
            f"Name the last of them, `{site.name}.{last}`."
        )
    return entry.method.for_module(site.module, context)
