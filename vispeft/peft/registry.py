"""Methods by the name that plans, configurations and adapter files use: those of this package, and registered ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vispeft.errors import PlanError
from vispeft.io.names import did_you_mean
from vispeft.peft.methods.adalora import AdaLoRA
from vispeft.peft.methods.adapter import Adapter
from vispeft.peft.methods.base import Method
from vispeft.peft.methods.compacter import Compacter
from vispeft.peft.methods.conv_lora import ConvLoRA
from vispeft.peft.methods.convpass import Convpass
from vispeft.peft.methods.dora import DoRA
from vispeft.peft.methods.factor_tuning import FacT
from vispeft.peft.methods.fourier import FourierFT
from vispeft.peft.methods.ladder import Ladder
from vispeft.peft.methods.lora import LoRA
from vispeft.peft.methods.lorand import LoRand
from vispeft.peft.methods.mona import Mona
from vispeft.peft.methods.orthogonal import BOFT, OFT
from vispeft.peft.methods.prefix import Prefix
from vispeft.peft.methods.products import LoHa, LoKr
from vispeft.peft.methods.prompt import VPT
from vispeft.peft.methods.rein import Rein
from vispeft.peft.methods.repadapter import RepAdapter
from vispeft.peft.methods.scale_shift import IA3, ScaleShift
from vispeft.peft.methods.sparse import Sparse
from vispeft.peft.methods.vera import VeRA

METHODS: dict[str, type[Method]] = {
    "lora": LoRA,
    "dora": DoRA,
    "adapter": Adapter,
    "scale_shift": ScaleShift,
    "ia3": IA3,
    "vera": VeRA,
    "adalora": AdaLoRA,
    "loha": LoHa,
    "lokr": LoKr,
    "fourierft": FourierFT,
    "oft": OFT,
    "boft": BOFT,
    "fact": FacT,
    "conv_lora": ConvLoRA,
    "sparse": Sparse,
    "ladder": Ladder,
    "vpt": VPT,
    "prefix": Prefix,
    "convpass": Convpass,
    "mona": Mona,
    "repadapter": RepAdapter,
    "lorand": LoRand,
    "compacter": Compacter,
    "rein": Rein,
}

# methods of others, filled by `register_method` alone
_registered: dict[str, type[Method]] = {}

# a number at the end tells the second delta of a method at a site, as in `lora_2`
_NAME = re.compile(r"(?!.*_\d+$)[a-z][a-z0-9_]*")

# `train.methods.full` has the rates of what is trained in full
_RESERVED = ("full",)


class UnknownMethodError(PlanError):
    """A method name that is neither of this package nor registered."""


def known_methods() -> dict[str, type[Method]]:
    """Return the methods of this package and the registered ones, by name."""
    return METHODS | _registered


def register_method(kind: type[Method]) -> None:
    """Make a method class of your own known by its `name` to plans, configurations and adapter files.

    The class must be a frozen dataclass. The registration lasts as long as the process; a second one of the same class
    changes nothing.
    """
    _check_class(kind)
    if known_methods().get(kind.name, kind) is not kind:
        taken = known_methods()[kind.name]
        raise PlanError(
            f"`{kind.__name__}` cannot be registered: the name `{kind.name}` belongs to "
            f"`{taken.__module__}.{taken.__name__}`. Give the class another `name`."
        )
    if kind.name not in METHODS:
        _registered[kind.name] = kind


def method_from_dict(values: Mapping[str, Any]) -> Method:
    """Return the method that a configuration writes: `{"method": "lora", "rank": 8}`."""
    if not isinstance(values, Mapping) or "method" not in values:
        raise PlanError(f"A method must be written as {{method: lora, rank: 8}}, but is {values!r}.")
    name, known = values["method"], known_methods()
    if not isinstance(name, str) or name not in known:
        guess = did_you_mean(str(name), known)
        raise UnknownMethodError(f"`{name}` is not a method.{guess} There are {', '.join(known)}.")
    return known[name].from_options({key: value for key, value in values.items() if key != "method"})


def _check_class(kind: type[Method]) -> None:
    """Refuse what is not a concrete frozen dataclass of `Method` with a usable `name`."""
    if not isinstance(kind, type) or not issubclass(kind, Method):
        raise PlanError(f"Only a subclass of `vispeft.Method` can be registered, but this is {kind!r}.")
    params = vars(kind).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise PlanError(
            f"`{kind.__name__}` must be a frozen dataclass, but is not. Put `@dataclass(frozen=True)` above the class."
        )
    if inspect.isabstract(kind):
        lacking = ", ".join(f"`{method}`" for method in sorted(kind.__abstractmethods__))
        raise PlanError(f"`{kind.__name__}` must define {lacking} to be registered.")
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise PlanError(
            f"`{kind.__name__}.name` must be a word of small letters, digits and underscores that is not `full` and "
            f'does not end in a number like `_2`, but is {name!r}. Write `name: ClassVar[str] = "my_method"`.'
        )
    if "method" in (field.name for field in fields(kind)):
        raise PlanError(
            f"`{kind.__name__}` must not have an option `method`, the key that names a method. Rename the option."
        )
