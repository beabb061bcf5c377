"""Which modules are in train mode while a model with frozen parts is trained."""

from __future__ import annotations

from torch import nn

from vispeft.peft.delta import Delta, WeightDelta


def train_mode(model: nn.Module) -> None:
    """Puts the model in train mode, but its frozen parts in eval mode, in place. Call it instead of `model.train()`.

    The one rule: in train mode are the model itself, every delta, every module with trained parameters of its own, and
    every part that is trained in full, dropouts and all. So frozen BatchNorms keep their statistics, and dropout and
    drop-path rest in every part that is not trained as a whole.
    """
    deltas = [module for module in model.modules() if isinstance(module, Delta | WeightDelta)]
    added = {parameter for delta in deltas for parameter in delta.parameters()}
    _visit(model, added, parent_is_full=False)
    for delta in deltas:
        delta.train()
    model.training = True


def _visit(module: nn.Module, added: set[nn.Parameter], *, parent_is_full: bool) -> None:
    """Sets the mode of a module and of what is in it. A module without parameters goes with its parent."""
    parameters = [parameter for parameter in module.parameters() if parameter not in added]
    is_full = all(parameter.requires_grad for parameter in parameters) if parameters else parent_is_full
    module.train(is_full or any(parameter.requires_grad for parameter in module.parameters(recurse=False)))
    for child in module.children():
        _visit(child, added, parent_is_full=is_full)
