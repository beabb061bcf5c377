"""Tensors of the ViTs of transformers (DINOv2 with registers, DINOv3) under the names of timm, and back.

transformers has q, k and v apart, gate and values of DINOv2's SwiGLU too (together in older files, as `weights_in`),
and positions of the patches alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models.tensor_names import NamePairs, to_ours, to_theirs

_BLOCK = {
    "blocks.*.norm1.": "layers.*.norm1.",
    "blocks.*.norm2.": "layers.*.norm2.",
    "norm.": "layernorm.",
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
}
# timm -> transformers
DINOV2: NamePairs = {
    **_BLOCK,
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "pos_embed": "embeddings.position_embeddings.weight",
    "blocks.*.attn.proj.": "layers.*.attention.out_proj.",
    "blocks.*.ls1.gamma": "layers.*.layer_scale1.lambda1",
    "blocks.*.ls2.gamma": "layers.*.layer_scale2.lambda1",
    "blocks.*.mlp.fc1.": "layers.*.mlp.fc1.",
    "blocks.*.mlp.fc2.": "layers.*.mlp.fc2.",
}
DINOV2_SWIGLU: NamePairs = {
    **DINOV2,
    "blocks.*.mlp.fc1.": "layers.*.mlp.weights_in.",
    "blocks.*.mlp.fc2.": "layers.*.mlp.down_proj.",
}
DINOV3: NamePairs = {
    **_BLOCK,
    "patch_embed.proj.": "embeddings.patch_embeddings.",
    "blocks.*.attn.proj.": "layers.*.attention.o_proj.",
    "blocks.*.gamma_1": "layers.*.layer_scale1.lambda1",
    "blocks.*.gamma_2": "layers.*.layer_scale2.lambda1",
    "blocks.*.mlp.fc1.": "layers.*.mlp.up_proj.",
    "blocks.*.mlp.fc2.": "layers.*.mlp.down_proj.",
}
DINOV3_SWIGLU: NamePairs = {
    **{ours: theirs for ours, theirs in DINOV3.items() if ours != "blocks.*.mlp.fc1."},
    "blocks.*.mlp.fc1_g.": "layers.*.mlp.gate_proj.",
    "blocks.*.mlp.fc1_x.": "layers.*.mlp.up_proj.",
}
_QKV = re.compile(r"layers\.(\d+)\.attention\.(q|k|v)_proj\.(weight|bias)")
_IGNORED = {"embeddings.mask_token"}


@dataclass(frozen=True)
class VitNames:
    """Names and layout of a ViT of timm beside those of transformers.

    pairs: ours, of timm, with those of transformers
    own: the model's tensors under the names of timm
    """

    pairs: NamePairs
    own: Mapping[str, Tensor]

    @classmethod
    def of(cls, own: Mapping[str, Tensor]) -> VitNames:
        """Return the names for a model by its own tensors."""
        if any(name.endswith(".gamma_1") for name in own):
            return cls(DINOV3_SWIGLU if "blocks.0.mlp.fc1_g.weight" in own else DINOV3, own)
        packed = own["blocks.0.mlp.fc1.weight"].shape[0] != own["blocks.0.mlp.fc2.weight"].shape[1]
        return cls(DINOV2_SWIGLU if packed else DINOV2, own)

    def from_transformers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names of timm.

        Raises CheckpointError for a name that this ViT has no place for, and for biases that it cannot hold.
        """
        renamed: dict[str, Tensor] = {}
        parts: dict[tuple[str, str], dict[str, Tensor]] = {}
        for name, tensor in self._current(tensors).items():
            if (match := _QKV.fullmatch(name)) is not None:
                parts.setdefault((match[1], match[3]), {})[match[2]] = tensor
            # no register tokens are an empty tensor there
            elif name not in _IGNORED and tensor.numel():
                renamed[self._ours(name)] = tensor
        if "pos_embed" in renamed:
            renamed["pos_embed"] = self._with_prefix_positions(renamed["pos_embed"])
        for (block, kind), qkv in parts.items():
            renamed |= self._weight(block, qkv) if kind == "weight" else self._biases(block, qkv)
        return renamed

    def _current(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of transformers with gate and values of DINOv2's SwiGLU together, of older files or newer."""
        if self.pairs is not DINOV2_SWIGLU:
            return dict(tensors)
        current = {}
        for name, tensor in tensors.items():
            if ".mlp.gate_proj." in name:
                values = tensors.get(name.replace("gate_proj", "up_proj"), tensor[:0])
                current[name.replace("gate_proj", "weights_in")] = torch.cat((tensor, values))
            elif ".mlp.up_proj." not in name:
                current[name.replace(".mlp.weights_out.", ".mlp.down_proj.")] = tensor
        return current

    def to_transformers(self) -> dict[str, Tensor]:
        """Return the model's own tensors under the names of transformers."""
        own = dict(self.own)
        renamed = {}
        if "reg_token" not in own:
            renamed["embeddings.register_tokens"] = own["cls_token"][:, :0]
        if "pos_embed" in own:
            own = _without_prefix_positions(own)
        for name, tensor in own.items():
            theirs = to_theirs(name, self.pairs)
            if theirs is not None and ".weights_in." in theirs:
                gate, values = tensor.chunk(2)
                renamed[theirs.replace("weights_in", "gate_proj")] = gate
                renamed[theirs.replace("weights_in", "up_proj")] = values
            elif theirs is not None:
                renamed[theirs] = tensor
            elif (match := re.fullmatch(r"blocks\.(\d+)\.attn\.(?:qkv\.(weight|bias)|([qv])_bias)", name)) is not None:
                start, kind = f"layers.{match[1]}.attention.", match[2] or "bias"
                chunks = {match[3]: tensor} if match[3] else dict(zip("qkv", tensor.chunk(3), strict=True))
                renamed |= {f"{start}{part}_proj.{kind}": chunk for part, chunk in chunks.items()}
            else:
                raise CheckpointError(f"The encoder's tensor {name!r} has no place in transformers' EoMT.")
        return {name: tensor.contiguous() for name, tensor in renamed.items()}

    def _ours(self, name: str) -> str:
        ours = to_ours(name, self.pairs)
        if ours is None:
            raise CheckpointError(
                f"The checkpoint's tensor {name!r} has no place in the encoder. Check `backbone` and "
                "`backbone_options`: DINOv2 with registers and DINOv3 are different models of timm."
            )
        return ours

    def _with_prefix_positions(self, positions: Tensor) -> Tensor:
        """Return positions [1, P + H W, C] of those of the patches [H W, C]; class and register tokens have none."""
        own = self.own.get("pos_embed")
        missing = 0 if own is None else max(0, own.shape[1] - len(positions))
        # more rows than tokens before the patches: another image size, which the reader refuses by its shape
        rows = missing if missing <= 1 + (self.own["reg_token"].shape[1] if "reg_token" in self.own else 0) else 0
        return torch.cat((positions.new_zeros(rows, positions.shape[1]), positions))[None]

    def _weight(self, block: str, qkv: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"blocks.{block}.attn.qkv.weight": _stacked(qkv, f"layers.{block}.attention", "qkv")}

    def _biases(self, block: str, qkv: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = f"blocks.{block}.attn."
        if f"{start}qkv.bias" in self.own:
            return {f"{start}qkv.bias": _stacked(qkv, f"layers.{block}.attention", "qkv")}
        held = "qv" if f"{start}q_bias" in self.own else ""
        for part, bias in qkv.items():
            if part not in held and bias.any():
                raise CheckpointError(
                    f"The checkpoint's tensor 'layers.{block}.attention.{part}_proj.bias' is not zero, but the encoder "
                    "has no such bias. Name a `backbone` with biases, such as vit_large_patch16_dinov3_qkvb."
                )
        return {f"{start}{part}_bias": qkv[part] for part in held if part in qkv}


def _stacked(qkv: Mapping[str, Tensor], where: str, parts: str) -> Tensor:
    for part in parts:
        if part not in qkv:
            raise CheckpointError(f"The checkpoint lacks {where}.{part}_proj.")
    return torch.cat([qkv[part] for part in parts])


def _without_prefix_positions(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with positions of the patches alone [H W, C]; those of the class token are added to it."""
    positions, prefix = own["pos_embed"][0], [n for n in ("cls_token", "reg_token") if n in own]
    counts = [own[name].shape[1] for name in prefix]
    side = round((len(positions) - sum(counts)) ** 0.5)
    if side**2 + sum(counts) != len(positions):
        return {**own, "pos_embed": positions}
    parts = torch.split(positions, [*counts, side**2])
    added = {name: own[name] + part for name, part in zip(prefix, parts[:-1], strict=True)}
    return {**own, **added, "pos_embed": parts[-1]}
