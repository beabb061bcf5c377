"""FourierFT (Gao et al. 2024, https://arxiv.org/abs/2405.03003): an update with few entries in the frequency domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import at_least, not_zero, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.weight_update import Update, UpdateMethod


@dataclass(frozen=True)
class FourierFT(UpdateMethod):
    """`W + scale * Re(IDFT2(F))`, where F has `frequencies` trained entries (equations 2 to 4), zero at the start.

    The places of the entries are drawn by a seed and the same for all sites of one shape, as in the paper. The paper
    starts the entries at random; from zero, the model starts as it is.

    frequencies: trained entries for each site
    scale: factor of the update; the transform divides by the size of the weight, so that it is large
    seed: of the places; the same numbers give the same places in the peft library
    """

    name: ClassVar[str] = "fourierft"
    frequencies: int
    scale: float = 150.0
    seed: int = 777

    def __post_init__(self) -> None:
        at_least("frequencies", self.frequencies, 1)
        not_zero("scale", self.scale)

    def update_of(self, weight: Tensor, context: Context) -> Update:
        """Return the entries for a weight [out, in, ...]."""
        return Spectrum(self, weight, context.shared(Places))


class Places(nn.Module):
    """Places of the trained entries, by the shape of the weight: buffers [frequencies], indices of the flat matrix."""

    def of(self, num_rows: int, num_columns: int, method: FourierFT) -> str:
        """Draw the places for a shape that has none yet. Returns the name of their buffer."""
        name = f"places_{num_rows}x{num_columns}"
        if name not in dict(self.named_buffers()):
            generator = torch.Generator().manual_seed(method.seed)
            places = torch.randperm(num_rows * num_columns, generator=generator)[: method.frequencies]
            self.register_buffer(name, places)
        return name


class Spectrum(Update):
    """Trained entries `spectrum` [frequencies] of a matrix's discrete Fourier transform."""

    def __init__(self, method: FourierFT, weight: Tensor, places: Places) -> None:
        super().__init__()
        self.shape, self.scale = (weight.shape[0], weight[0].numel()), method.scale
        if method.frequencies > weight.numel():
            raise PlanError(
                f"`frequencies` must be at most {weight.numel()}, the numbers of this weight, but is "
                f"{method.frequencies}."
            )
        self.places = places
        self.name = places.of(*self.shape, method)
        places.to(weight.device)
        self.spectrum = trainable(method.frequencies, like=weight)

    def forward(self) -> Tensor:
        """Return the update [out, in], in float32 at least: half precisions have no transform of every size."""
        spectrum = self.spectrum if self.spectrum.dtype == torch.float64 else self.spectrum.float()
        dense = spectrum.new_zeros(self.shape[0] * self.shape[1])
        dense = dense.index_copy(0, self.places.get_buffer(self.name), spectrum)
        update: Tensor = torch.fft.ifft2(dense.view(self.shape)).real
        return self.scale * update
