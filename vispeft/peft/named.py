"""Records of the named adapters of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vispeft.peft.hooks import SiteHooks
from vispeft.peft.methods.base import Delta, WeightDelta
from vispeft.peft.methods.image_rows import ImageBatch
from vispeft.peft.methods.mixture import SiteMixture, WeightMixture
from vispeft.peft.owner_hooks import OwnerHooks
from vispeft.peft.plan import Plan
from vispeft.peft.targets import Site

Attachment = tuple[Site, Delta | WeightDelta]


@dataclass(frozen=True)
class NamedAdapter:
    """One adapter of a model.

    plan: methods by site name, and the names of the parameters trained in full
    attachments: its deltas with their sites, in the plan's order
    hooks: those of its deltas
    values: of the parameters trained in full and of the buffers beside them, by name
    metadata: what the writer of its file added
    """

    plan: Plan
    attachments: tuple[Attachment, ...]
    hooks: SiteHooks
    values: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


@dataclass
class NamedAdapters:
    """The adapters of a model.

    adapters: by name
    weights: of the active ones
    base_values: of all that an adapter trains in full, as the plain base has it
    mixtures: the deltas, one a site
    owners: hooks of the modules whose own parameters an adapter changes
    batch: shared by mixtures and hooks
    """

    adapters: dict[str, NamedAdapter] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    base_values: dict[str, Tensor] = field(default_factory=dict)
    mixtures: list[SiteMixture | WeightMixture] = field(default_factory=list)
    owners: list[OwnerHooks] = field(default_factory=list)
    batch: ImageBatch = field(default_factory=ImageBatch)

    @contextmanager
    def batch_of(self, images: tuple[str | None, ...]) -> Iterator[None]:
        """Let each image of the batch have its adapter for the block."""
        before = self.batch.adapters
        try:
            self._set_batch(images)
            yield
        finally:
            self._set_batch(before)

    def _set_batch(self, images: tuple[str | None, ...]) -> None:
        self.batch.set_adapters(images)
        for owner in self.owners:
            owner.set_batch(images)
        for mixture in self.mixtures:
            mixture.set_batch(images)
