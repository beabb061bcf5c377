"""Starts of LoRA that change the base: the update that the library subtracts from the weights, computed again.

A directory of the library holds the trained factors, but not those at the start. The library runs the start again on
the base when it reads the directory, and so does this module.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.peft.interop.peft_library.lora_factors import Factors, summed
from vispeft.peft.interop.peft_library.options import Options

# starts of the factors alone, which the file's tensors replace
_WITHOUT_CHANGE = ("gaussian", "eva", "orthogonal", "mica", "true", "false")

# starts that cannot be computed from the base alone
_UNKNOWN = {
    "pissa_niter": "drawn at random",
    "corda": "computed from data",
    "lora_ga": "computed from gradients on data",
    "loftq": "a quantisation of the base",
}


def changes_base(options: Options) -> bool:
    """Return True for a start that changes the base and can be computed again. Refuse one that cannot."""
    start = str(options.values.get("init_lora_weights", True)).lower()
    if start in _WITHOUT_CHANGE:
        return False
    if start in ("pissa", "olora"):
        return True
    reason = next((reason for name, reason in _UNKNOWN.items() if start.startswith(name)), "not known here")
    raise CheckpointError(
        f"`{options.path}` has `init_lora_weights` set to {start!r}, a start that changes the base and is {reason}. "
        "Write the adapter with `save_pretrained(..., path_initial_model_for_weight_conversion=...)` of the peft "
        "library, which makes a plain LoRA of it."
    )


@torch.no_grad()
def from_start(trained: Factors, module: nn.Linear, options: Options, rank: int) -> Factors:
    """Return factors of twice the rank whose update is that of the trained ones less that of the start.

    rank: of the start, which may be above the number of rows that it gives
    """
    if trained.scale <= 0:
        raise CheckpointError(f"`{options.path}` has a start that changes the base, but a scale of {trained.scale}.")
    if not module.weight.is_floating_point():
        raise CheckpointError(f"`{options.path}` has a start that cannot be computed from quantised weights.")
    weight = module.weight.detach().to("cpu", torch.float32)
    is_pissa = str(options.values["init_lora_weights"]).lower() == "pissa"
    a, b = _pissa(weight, rank, trained.scale) if is_pissa else _olora(weight, rank)
    start = Factors(a.to(trained.a.dtype), -b.to(trained.b.dtype), trained.scale)
    change = summed([trained, start])
    if change.rank > max(weight.shape):
        # the update itself with an identity has fewer rows than twice the rank
        change = replace(change, a=change.b @ change.a, b=torch.eye(weight.shape[0], dtype=change.b.dtype))
    return change


def _pissa(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A and B of the largest singular values (Meng et al. 2024, https://arxiv.org/abs/2404.02948)."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = (values[:rank] / scale).sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def _olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of the QR decomposition (Buyukakyuz 2024, https://arxiv.org/abs/2406.01775)."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]
