"""Configurations that `vispeft plan` may propose: what is trained, and its name in the studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LINEAR = (
    "@encoder.qkv | @encoder.proj | @encoder.fc1 | @encoder.fc2",
    "@deformable.sampling_offsets | @deformable.value_proj | @deformable.output_proj",
    "@decoder.q_proj | @decoder.v_proj",
    "@pixel_decoder.linear1 | @pixel_decoder.linear2 | @decoder.linear1 | @decoder.linear2",
)
_BOTH = "@deformable.value_proj | @deformable.sampling_offsets"
_ALL_FOUR = f"{_BOTH} | @deformable.attention_weights | @deformable.output_proj"
_NORMS = ("**.norm*.**",)


@dataclass(frozen=True)
class Candidate:
    """One configuration.

    deltas: as in `peft.deltas`
    train: patterns trained in full, beside the heads or the parts without weights
    variant: name in the studies' raw files; empty where no study has it
    """

    name: str
    deltas: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[str, ...] = ()
    variant: str = ""


def _lora(rank: int, **options: Any) -> dict[str, Any]:
    return {"method": "lora", "rank": rank, **options}


def _adapters(count: int) -> dict[str, Any]:
    return {"method": "adapter", "reduction": 4, "activation": "relu", "count": count}


def _everywhere(rank: int) -> Candidate:
    """Return LoRA as in `bundled_lora.yaml`, which has rank 4, and rank 16 in the patch embedding."""
    sites = {"backbone.body.model.patch_embed.proj": _lora(4 * rank), **dict.fromkeys(_LINEAR, _lora(rank))}
    return Candidate(f"LoRA on all linear maps, rank {rank}", sites, _NORMS)


# for bases whose decoders have weights, such as the bundled one
PRETRAINED: tuple[Candidate, ...] = (
    Candidate("heads alone", variant="head only"),
    Candidate("full fine-tuning", train=("**",)),
    Candidate("biases", train=("**.bias",), variant="biases"),
    Candidate("norms", train=_NORMS, variant="norms"),
    Candidate(
        "scale and shift",
        {"@encoder.proj | @encoder.fc2 | @attention_outputs | @decoder.linear2": {"method": "scale_shift"}},
        variant="scale and shift",
    ),
    *(
        Candidate(f"LoRA on the backbone's qkv, rank {rank}", {"@encoder.qkv": _lora(rank, parts="qv")}, (), variant)
        for rank, variant in (
            (2, ""),
            (4, ""),
            (8, "LoRA in the backbone"),
            (14, "LoRA in the backbone, rank 14"),
            (32, ""),
        )
    ),
    _everywhere(2),
    _everywhere(4),
    _everywhere(8),
    Candidate("LoRA on deformable value_proj, rank 8", {"@deformable.value_proj": _lora(8)}, variant="LoRA value_proj"),
    *(
        Candidate(f"LoRA on deformable value_proj and sampling_offsets, rank {rank}", {_BOTH: _lora(rank)}, (), variant)
        for rank, variant in (
            (2, ""),
            (4, "LoRA both, rank 4"),
            (8, "LoRA both"),
            (16, "LoRA both, rank 16"),
            (32, "LoRA both, rank 32"),
        )
    ),
    Candidate("LoRA on all four deformable maps, rank 8", {_ALL_FOUR: _lora(8)}, (), "LoRA all four"),
    Candidate("LoRA on all four deformable maps, rank 15", {_ALL_FOUR: _lora(15)}, (), "LoRA all four, rank 15"),
    Candidate(
        "LoRA on the backbone's qkv and on deformable attention, rank 8",
        {"@encoder.qkv": _lora(8, parts="qv"), _BOTH: _lora(8)},
        variant="LoRA in backbone and decoders",
    ),
    Candidate(
        "adapters in the pixel decoder",
        {"@pixel_decoder.output_proj": _adapters(1)},
        variant="adapters in the pixel decoder",
    ),
    *(
        Candidate(
            f"{count} {'adapter' if count == 1 else 'adapters'} after every attention of the decoders",
            {"@attention_outputs": _adapters(count)},
            variant=f"{count} {'adapter' if count == 1 else 'adapters'} per block",
        )
        for count in (1, 2, 3)
    ),
)

# for bases whose decoders start from random values and are trained in full: only the backbone's part differs
NEW_DECODER: tuple[Candidate, ...] = (
    Candidate("the new parts alone"),
    Candidate("full fine-tuning", train=("**",)),
    *(
        Candidate(f"LoRA on the backbone's qkv, rank {rank}", {"@encoder.qkv": _lora(rank, parts="qv")})
        for rank in (2, 4, 8, 16, 32)
    ),
    *(
        Candidate(f"LoRA on the backbone's linear maps, rank {rank}", {_LINEAR[0]: _lora(rank)})
        for rank in (2, 4, 8, 16, 32)
    ),
    *(
        Candidate(f"{count} adapters per block of the backbone", {"@encoder.proj | @encoder.fc2": _adapters(count)})
        for count in (1, 2, 3)
    ),
    Candidate("scale and shift in the backbone", {"@encoder.proj | @encoder.fc2": {"method": "scale_shift"}}),
    Candidate("the backbone's last two blocks in full", train=("@encoder.blocks[-2:]",)),
    Candidate("a ladder beside the backbone", {"@encoder.blocks": {"method": "ladder", "width": 32}}),
)
