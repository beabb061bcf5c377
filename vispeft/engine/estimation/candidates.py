"""Configurations that `vispeft plan` may propose: what is trained at which rate, and its name in the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_VIT = "@encoder.qkv | @encoder.proj | @encoder.fc1 | @encoder.fc2"
_DEFORMABLE = "@deformable.sampling_offsets | @deformable.value_proj | @deformable.output_proj"
_FFNS = "@pixel_decoder.linear1 | @pixel_decoder.linear2 | @decoder.linear1 | @decoder.linear2"
_EVERYWHERE = f"{_VIT} | {_DEFORMABLE} | @decoder.q_proj | @decoder.v_proj | {_FFNS}"
_AFTER_ATTENTION_AND_FFN = (
    "@encoder.proj | @encoder.fc2 | @attention_outputs | @pixel_decoder.linear2 | @decoder.linear2"
)
_HEADS, _NEW = ("@heads",), ("@new",)
_HEADS_RATE = 1e-3
_ADAPTER = {"method": "adapter", "reduction": 4, "activation": "relu"}


@dataclass(frozen=True)
class Candidate:
    """One configuration.

    train: patterns trained in full
    deltas: as in `peft.deltas`
    rates: those of the study on the bundled base, as in `train.methods`; empty for what it does not have
    variant: name in the study's raw files; empty where the study does not have it
    """

    name: str
    train: tuple[str, ...]
    deltas: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    variant: str = ""

    @property
    def is_full(self) -> bool:
        """True if all parameters are trained."""
        return "**" in self.train


def _lora(rank: int, **options: Any) -> dict[str, Any]:
    return {"method": "lora", "rank": rank, **options}


def _of_study(
    name: str,
    sites: str,
    method: Mapping[str, Any],
    variant: str,
    rate: float,
    *,
    train: tuple[str, ...] = _HEADS,
) -> Candidate:
    """Return a candidate as in `configs/study.yaml`."""
    return Candidate(name, train, {sites: dict(method)}, {"full": _HEADS_RATE, method["method"]: rate}, variant)


def _adapters(count: int) -> str:
    return f"{count} {'adapter' if count == 1 else 'adapters'}"


# for bases whose decoders have weights, such as the bundled one: the configurations of configs/study.yaml, and some for
# backbones that lack their sites
PRETRAINED: tuple[Candidate, ...] = (
    Candidate("heads alone", _HEADS, rates={"full": _HEADS_RATE}, variant="head only"),
    Candidate("full fine-tuning", ("**",), rates={"full": 5e-4}),
    Candidate(
        "the last block of the backbone in full",
        (*_HEADS, "@encoder.blocks[-1:]"),
        rates={"full": _HEADS_RATE},
        variant="last block",
    ),
    *(
        _of_study(f"LoRA everywhere, rank {rank}", _EVERYWHERE, _lora(rank), f"LoRA everywhere, rank {rank}", 1e-2)
        for rank in (1, 4, 12)
    ),
    _of_study(
        "class head, norms, and LoRA in backbone and deformable attention, rank 4",
        f"@encoder.qkv | @encoder.fc1 | {_DEFORMABLE}",
        _lora(4),
        "class head and LoRA, at most 1 %",
        1e-2,
        train=("@class_head", "**.norm*.**"),
    ),
    _of_study("LoRA in the backbone, rank 4", _VIT, _lora(4), "LoRA in the ViT", 1e-2),
    _of_study(
        "LoRA on all four deformable maps, rank 8",
        f"{_DEFORMABLE} | @deformable.attention_weights",
        _lora(8),
        "LoRA on deformable attention",
        1e-2,
    ),
    _of_study("LoRA on deformable value_proj, rank 8", "@deformable.value_proj", _lora(8), "LoRA on values", 1e-2),
    *(
        _of_study(
            f"{_adapters(count)} after every attention and FFN",
            _AFTER_ATTENTION_AND_FFN,
            {"method": "adapter", "width": 10, "count": count},
            f"{_adapters(count)} per block",
            # longer chains need lower rates
            2e-2 if count == 1 else 5e-3,
        )
        for count in (1, 2, 3)
    ),
    _of_study(
        "scale and shift",
        f"{_VIT} | @attention_outputs | @deformable.value_proj | @decoder.linear1 | @decoder.linear2",
        {"method": "scale_shift"},
        "scale and shift",
        2e-2,
    ),
    _of_study("50 prompts per block of the backbone", "@encoder.blocks", {"method": "vpt", "tokens": 50}, "VPT", 2e-2),
    _of_study(
        "Convpass in the backbone",
        "@encoder.proj | @encoder.fc2",
        {"method": "convpass", "width": 12},
        "Convpass",
        2e-2,
    ),
    Candidate("norms", (*_HEADS, "**.norm*.**")),
    *(
        Candidate(
            f"{_adapters(count)} after every attention of the decoders",
            _HEADS,
            {"@attention_outputs": {**_ADAPTER, "count": count}},
        )
        for count in (1, 2, 3)
    ),
)

# for bases whose decoders start from random values and are trained in full: only the backbone's part differs
NEW_DECODER: tuple[Candidate, ...] = (
    Candidate("the new parts alone", _NEW),
    Candidate("full fine-tuning", ("**",)),
    *(
        Candidate(f"LoRA on the backbone's qkv, rank {rank}", _NEW, {"@encoder.qkv": _lora(rank, parts="qv")})
        for rank in (2, 4, 8, 16, 32)
    ),
    *(
        Candidate(f"LoRA on the backbone's linear maps, rank {rank}", _NEW, {_VIT: _lora(rank)})
        for rank in (2, 4, 8, 16, 32)
    ),
    *(
        Candidate(
            f"{_adapters(count)} per block of the backbone",
            _NEW,
            {"@encoder.proj | @encoder.fc2": {**_ADAPTER, "count": count}},
        )
        for count in (1, 2, 3)
    ),
    Candidate("scale and shift in the backbone", _NEW, {"@encoder.proj | @encoder.fc2": {"method": "scale_shift"}}),
    Candidate("the backbone's last two blocks in full", (*_NEW, "@encoder.blocks[-2:]")),
    Candidate("a ladder beside the backbone", _NEW, {"@encoder.blocks": {"method": "ladder", "width": 32}}),
)
