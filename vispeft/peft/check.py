"""One forward pass that every delta must take part in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vispeft.errors import PlanError
from vispeft.peft.inject import attached, disabled, injection_of, recorded, switched_off
from vispeft.peft.methods.base import AroundDelta
from vispeft.peft.modes import train_mode
from vispeft.peft.wrappers import unwrapped


def check(model: nn.Module, example: Any, *, training: bool = False) -> None:
    """Run the model once, keeping nothing for backward; PlanError names every delta that cannot be trained.

    That is one that does not run, or runs where the model itself has switched gradients off.

    training: run in the mode of `train_mode` and not in eval mode, for models that compute something else there; the
        random generators are left as they were
    example: a tuple is passed as the arguments, a mapping as keyword arguments, and anything else, a list or a named
        tuple too, as the one argument: `check(detector, [image])` calls `detector([image])`
    """
    model = unwrapped(model)
    injection_of(model)
    with (
        recorded(model) as (finished, running),
        _in_mode(model, training),
        _all_frozen(model),
        _without_gradients(model) as without_gradients,
    ):
        try:
            _call(model, example)
        except Exception as error:
            _explain(model, example, error, finished, running)
            raise
    unused = [item.key for item in attached(model) if item.key not in finished]
    if unused:
        raise PlanError(
            f"These deltas never run, so they would not be trained: {', '.join(f'`{key}`' for key in unused)}. "
            f"The model does not call their modules (it may read the weights itself). Name the parameters, such as "
            f"`{unused[0].rpartition('.')[0]}.weight`."
        )
    if without_gradients:
        raise PlanError(
            f"The model runs these deltas without gradients, so they would not be trained: "
            f"{', '.join(f'`{key}`' for key in without_gradients)}. Name sites outside of the part that the model "
            f"itself runs under `torch.no_grad()`, or build the model without that."
        )


def _explain(model: nn.Module, example: Any, error: Exception, finished: set[str], running: list[str]) -> None:
    """Raise a PlanError where a delta or the form of the example is at fault; else note on the error what was done."""
    if isinstance(error, PlanError | MemoryError | torch.OutOfMemoryError):
        return
    if running:
        raise PlanError(f"`{running[-1]}` does not fit what its site gives: {error}") from error
    ran = ", ".join(f"`{key}`" for key in sorted(finished)) or "none"
    reason = f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
    form, others = _forms(example)
    around = _failing_inputs(model, example)
    if around:
        raise PlanError(
            f"The model runs on the example, but not with the inputs that these deltas give their sites: `{around[0]}`"
            f"{f' and {len(around) - 1} more' if len(around) > 1 else ''}. Name sites that take such inputs, or leave "
            f"the method out. {reason}"
        ) from error
    with disabled(model):
        if _works(model, example):
            raise PlanError(
                f"The model runs on the example without its deltas, but not with them. Those that ran are {ran}. "
                f"{reason}"
            ) from error
        remedy = next((text for text, other in others if _works(model, other)), None)
    if remedy is not None:
        raise PlanError(f"The model cannot be called with {form}, but with `{remedy}`. {reason}") from error
    misfit = _misfit(model, example)
    if misfit is not None:
        signature = inspect.signature(model.forward)
        raise PlanError(
            f"The model cannot be called with {form}: {misfit}. Its arguments are `{signature}`. "
            f"Pass a tuple of arguments, a mapping of keyword arguments, or the one argument itself."
        ) from error
    error.add_note(f"The model itself fails on this example, without its deltas too. `check` called it with {form}.")


def _failing_inputs(model: nn.Module, example: Any) -> list[str]:
    """Return the keys of the deltas around modules, if the model runs without them; else none."""
    around = [item for item in attached(model) if isinstance(item.delta, AroundDelta)]
    with switched_off([item.delta for item in around]):
        return [item.key for item in around] if around and _works(model, example) else []


def _forms(example: Any) -> tuple[str, list[tuple[str, Any]]]:
    """Return how an example is passed, in words, and other ways to pass the same, as code and value."""
    if isinstance(example, Mapping):
        return f"the keyword arguments {', '.join(map(str, example))}", [("check(model, (example,))", (example,))]
    if type(example) is tuple:
        return (
            f"{len(example)} positional arguments, the entries of a tuple",
            [("check(model, list(example))", list(example)), ("check(model, (example,))", (example,))],
        )
    kind = type(example).__name__
    others: list[tuple[str, Any]] = [("check(model, [example])", [example])]
    if isinstance(example, list | tuple):
        others.insert(0, ("check(model, tuple(example))", tuple(example)))
    return f"the {kind} as its one argument", others


def _call(model: nn.Module, example: Any) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif type(example) is tuple:
        model(*example)
    else:
        model(example)


def _works(model: nn.Module, example: Any) -> bool:
    """Return True if the model runs on an example."""
    try:
        _call(model, example)
    except Exception:
        return False
    return True


def _misfit(model: nn.Module, example: Any) -> str | None:
    """Return the reason why the arguments do not fit the model's signature; None if they do, or it has none."""
    args = example if type(example) is tuple else () if isinstance(example, Mapping) else (example,)
    kwargs = example if isinstance(example, Mapping) else {}
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:
        return None
    return None


@contextmanager
def _all_frozen(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters for the block: gradients are enabled, but autograd keeps nothing."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[list[str]]:
    """Record, for the block, the keys of the deltas that run only where the model itself has switched gradients off."""
    keys: dict[bool, dict[str, None]] = {True: {}, False: {}}
    handles = []

    def watch(key: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            keys[torch.is_grad_enabled() or _is_in_checkpoint()][key] = None

        return note

    for item in attached(model):
        handles.append(item.delta.register_forward_pre_hook(watch(item.key)))
    found: list[str] = []
    try:
        yield found
    finally:
        found += [key for key in keys[False] if key not in keys[True]]
        for handle in handles:
            handle.remove()


def _is_in_checkpoint() -> bool:
    """Return True inside reentrant activation checkpointing, whose forward pass has no gradients but backward has."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model in eval mode or train mode for the block; afterwards modes and random generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    gpus = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=gpus, enabled=training):
            if training:
                train_mode(model)
            else:
                model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
