"""Train mode for a model with frozen parts."""

from __future__ import annotations

from torch import nn

from vispeft.peft.methods.base import Delta, WeightDelta
from vispeft.peft.methods.mixture import Chain, SiteMixture, WeightMixture
from vispeft.peft.wrappers import wrapped_layers


def train_mode(model: nn.Module, *, update_statistics: bool = False) -> None:
    """Put the model in train mode, but rest what drops values or keeps statistics in its frozen parts, in place.

    Call it instead of `model.train()`. The model itself, the deltas, every part that is trained in full and every
    module with trained parameters of its own train as usual. In what is frozen, containers follow train mode, since
    they may ask for it to give losses or to recompute activations. In eval mode there are

    - dropout, drop path and stochastic depth;
    - modules without children that own parameters or buffers, and norms with running statistics, so that nothing that
      is frozen changes;
    - named adapters;
    - modules that pass a dropout rate of their own, above 0, to a function: nn.MultiheadAttention, attention with a
      dropout as a child, and modules with a number such as `attention_dropout` among their attributes. Where activation
      checkpointing is on for such a module (`gradient_checkpointing`), it is in train mode all the same and its rate
      applies: set it to 0.

    Norms with running statistics keep them also where they are trained in full, as the published models of detection
    do: the few images of a batch give worse ones.

    update_statistics: let norms that are trained in full take their statistics from the batch, and update them
    """
    *wrappers, inner = wrapped_layers(model)
    deltas = [module for module in inner.modules() if isinstance(module, Delta | WeightDelta)]
    added = {parameter for delta in deltas for parameter in delta.parameters()}
    _visit(inner, added, parent_is_full=False)
    if not update_statistics:
        for module in inner.modules():
            if _keeps_statistics(module):
                module.training = False
    for delta in deltas:
        delta.train(not isinstance(delta, SiteMixture | WeightMixture))
    for chain in [module for module in inner.modules() if isinstance(module, Chain)]:
        chain.eval()
    for module in (*wrappers, inner):
        module.training = True


def _visit(module: nn.Module, added: set[nn.Parameter], *, parent_is_full: bool) -> None:
    """Set the mode of a module and of what is in it. A module without parameters goes with its parent."""
    parameters = [parameter for parameter in module.parameters() if parameter not in added]
    is_full = all(parameter.requires_grad for parameter in parameters) if parameters else parent_is_full
    has_trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    module.train(is_full or has_trained or not _rests(module))
    for child in module.children():
        _visit(child, added, parent_is_full=is_full)


def _rests(module: nn.Module) -> bool:
    """Return True for a module that, in train mode, drops values at random or changes what is frozen."""
    if vars(module).get("gradient_checkpointing", False):
        return False
    if _drops(module) or isinstance(module, nn.MultiheadAttention | nn.RReLU):
        return True
    buffers = [name for name, _ in module.named_buffers(recurse=False)]
    owns = bool(buffers) or any(True for _ in module.parameters(recurse=False))
    is_leaf = all(isinstance(child, Delta) for child in module.children())
    return (owns and is_leaf) or _keeps_statistics(module) or _has_rate(module)


def _keeps_statistics(module: nn.Module) -> bool:
    """Return True for a norm with running statistics, of any library."""
    return any(name == "running_mean" for name, _ in module.named_buffers(recurse=False))


def _drops(module: nn.Module) -> bool:
    """Return True for dropout, drop path and stochastic depth of any library."""
    name = type(module).__name__.lower()
    return isinstance(module, nn.modules.dropout._DropoutNd) or "drop" in name or "stochasticdepth" in name


def _has_rate(module: nn.Module) -> bool:
    """Return True for a module with a dropout rate above 0 that it can pass to a function itself."""
    if any("drop" in name.lower() and isinstance(value, float) and value > 0 for name, value in vars(module).items()):
        return True
    kind = type(module).__name__.lower()
    is_attention = "attention" in kind or "attn" in kind
    return is_attention and any(getattr(child, "p", 0.0) for child in module.children() if _drops(child))
