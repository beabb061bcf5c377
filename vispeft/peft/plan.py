"""Plans of training: methods by site pattern, and the patterns that are trained in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Method
from vispeft.peft.registry import method_from_dict


@dataclass(frozen=True)
class Plan:
    """Deltas by site pattern, and patterns of parameters or modules that are trained in full; the rest is frozen.

    A site that several patterns name gets all of their deltas; they run one after the other in the plan's order. A
    pattern may also have several methods, in a list.
    """

    deltas: Mapping[str, Method | Sequence[Method]] = field(default_factory=dict)
    train: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.train, str):
            raise PlanError(f"`train` must be a list of patterns, but is the text {self.train!r}. Put it in brackets.")
        deltas = {key: tuple(value) if isinstance(value, list) else value for key, value in self.deltas.items()}
        object.__setattr__(self, "deltas", deltas)
        object.__setattr__(self, "train", tuple(self.train))
        for pattern, method in self.entries():
            if not isinstance(method, Method):
                raise PlanError(f"`{pattern}` must have a method such as LoRA(rank=8), but has {method!r}.")

    def entries(self) -> list[tuple[str, Method]]:
        """Return each pattern with each of its methods, in order."""
        return [
            (pattern, method)
            for pattern, methods in self.deltas.items()
            for method in (methods if isinstance(methods, Sequence) else (methods,))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return `{"deltas": {pattern: {"method": name, ...}}, "train": [...]}`; `from_dict` reads it back."""
        deltas: dict[str, Any] = {}
        for pattern, methods in self.deltas.items():
            if isinstance(methods, Method):
                deltas[pattern] = methods.to_dict()
            else:
                deltas[pattern] = [method.to_dict() for method in methods]
        return {"deltas": deltas, "train": list(self.train)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan that a configuration writes: `deltas` and `train`, both optional."""
        for key in values:
            if key not in ("deltas", "train"):
                raise PlanError(f"`{key}` is not a key of a plan, which has `deltas` and `train`.")
        deltas = values.get("deltas") or {}
        if not isinstance(deltas, Mapping):
            raise PlanError(f"`deltas` must map patterns to methods, but is {deltas!r}.")
        built = {
            pattern: [_method(pattern, each) for each in options]
            if isinstance(options, list | tuple)
            else _method(pattern, options)
            for pattern, options in deltas.items()
        }
        train = values.get("train") or ()
        if isinstance(train, str) or not all(isinstance(pattern, str) for pattern in train):
            raise PlanError(f"`train` must be a list of patterns, but is {train!r}.")
        return cls(built, tuple(train))

    @classmethod
    def full(cls) -> Plan:
        """Return the plan of full fine-tuning: every parameter."""
        return cls(train=("**",))

    @classmethod
    def head_only(cls, *head: str) -> Plan:
        """Return a plan that trains the head alone."""
        return cls(train=head or ("head.**",))

    @classmethod
    def last_blocks(cls, count: int, blocks: str = "blocks", head: Sequence[str] = ("head.**",)) -> Plan:
        """Return a plan that trains the last `count` of the numbered children of `blocks`, and the head."""
        if count < 1:
            raise PlanError(f"`count` must be at least 1, but is {count}.")
        return cls(train=(f"{blocks}.[-{count}:].**", *head))

    @classmethod
    def biases(cls, head: Sequence[str] = ("head.**",)) -> Plan:
        """Return a plan that trains biases (BitFit, 2022, https://arxiv.org/abs/2106.10199) and the head."""
        return cls(train=("**.bias", *head))

    @classmethod
    def norms(cls, norms: str = "@norms", head: Sequence[str] = ("head.**",)) -> Plan:
        """Return a plan that trains all parameters of the norms, found by their type, and the head."""
        return cls(train=(norms, *head))


def _method(pattern: str, values: Any) -> Method:
    """Return one method of a pattern; errors get the pattern put before them."""
    try:
        return method_from_dict(values)
    except PlanError as error:
        raise type(error)(f"`{pattern}`: {error}") from error
