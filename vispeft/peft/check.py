"""One forward pass that every delta must take part in, with a gradient."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.gradients import graph_alone, parameters_behind, parameters_with_gradient
from vispeft.peft.inject import attached, disabled, injection_of, recorded, switched_off
from vispeft.peft.methods.base import AroundDelta
from vispeft.peft.modes import train_mode
from vispeft.peft.outputs import tensors_of
from vispeft.peft.wrappers import unwrapped


def check(model: nn.Module, example: Any, *, training: bool = False) -> None:
    """Run the model once; PlanError names every delta that did not run, or that the model runs under `torch.no_grad`.

    A warning names the deltas that no output depends on with a gradient, as those of a layer whose features the model
    does not use. Where all deltas are such, it is a PlanError. Where no output in eval mode depends on a delta, those
    in train mode count, if the model gives any without targets. Nothing is kept for a backward pass, so that memory is
    that of a pass without gradients.


    training: run in the mode of `train_mode` and not in eval mode, for models that compute something else there; the
        random generators are left as they were
    example: a tuple is passed as the arguments, a mapping as keyword arguments, and anything else, a list or a named
        tuple too, as the one argument: `check(detector, [image])` calls `detector([image])`
    """
    model = unwrapped(model)
    injection_of(model)
    with recorded(model) as (finished, running), _in_mode(model, training):
        try:
            with graph_alone():
                output = _call(model, example)
        except PlanError:
            raise
        except Exception:
            # a model may be able to run, but not to be trained in this mode
            output = None
            finished.clear()
            running.clear()
            with torch.no_grad():
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
    if output is not None:
        _refuse_without_gradient(model, example, output)


def _refuse_without_gradient(model: nn.Module, example: Any, output: Any) -> None:
    """Refuse, or warn of, deltas on which no output depends with a gradient, here and in train mode."""
    deltas = {item.key: trained for item in attached(model) if (trained := _trained(item.delta))}
    missing = _without(deltas, parameters_behind(output))
    if not missing or next(tensors_of(output), None) is None:
        return
    blocked: set[str] = set()
    with _in_mode(model, True), torch.inference_mode(False), torch.enable_grad(), _without_grad(model, blocked):
        try:
            output = _call(model, example)
            reached = parameters_with_gradient(output, [one for trained in missing.values() for one in trained])
        except Exception:
            # the model needs targets in train mode, or its outputs have no sum
            return
    missing = _without(missing, reached | parameters_behind(output))
    blocked &= missing.keys()
    if blocked or (missing and len(missing) == len(deltas)):
        raise PlanError(
            f"These deltas run, but get no gradient, so they would not be trained: {_quoted(blocked or missing)}. The "
            f"model runs them under `torch.no_grad`, or detaches what comes of them. Name other modules."
        )
    if missing:
        warnings.warn(
            f"No output of the model depends on these deltas with a gradient, so they may not be trained: "
            f"{_quoted(missing)}. Leave them out, unless a loss inside the model uses them.",
            stacklevel=3,
        )


@contextmanager
def _without_grad(model: nn.Module, blocked: set[str]) -> Iterator[None]:
    """Collect, for the block, the keys of the deltas that run while gradients are switched off."""

    def watch(key: str) -> Callable[..., None]:
        return lambda *_: None if torch.is_grad_enabled() else blocked.add(key)

    handles = [item.delta.register_forward_hook(watch(item.key)) for item in attached(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _quoted(keys: Collection[str]) -> str:
    return ", ".join(f"`{key}`" for key in sorted(keys))


def _trained(delta: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of a delta."""
    return [parameter for parameter in delta.parameters() if parameter.requires_grad]


def _without(deltas: Mapping[str, list[nn.Parameter]], reached: set[Tensor]) -> dict[str, list[nn.Parameter]]:
    """Return the deltas of which no parameter was reached."""
    return {key: trained for key, trained in deltas.items() if reached.isdisjoint(trained)}


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


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if type(example) is tuple else model(example)


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
