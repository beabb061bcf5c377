"""Surroundings of a site, for methods that need more than the site itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vispeft.peft.methods.map_sizes import MapSizes, SiteSizes
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs
from vispeft.peft.targets import Site

Shared = TypeVar("Shared")


@dataclass(frozen=True)
class Tables:
    """Facts about the forward pass of one injected model, which the hooks of the injection record."""

    recomputed_inputs: RecomputedInputs = field(default_factory=RecomputedInputs)
    map_sizes: MapSizes = field(default_factory=MapSizes)


@dataclass(frozen=True)
class Context:
    """A site among all sites that a plan gives the same method with equal options.

    sites: all of them, in the order in which the model registers them; one that the plan names twice is in it twice
    index: position of this site
    tables: what the hooks of the injection record
    """

    sites: Sequence[Site]
    index: int = 0
    tables: Tables = field(default_factory=Tables)
    _shared: list[Any] = field(default_factory=list)  # of any type, which `shared` gives back as it was built

    @property
    def site(self) -> Site:
        """The site itself."""
        return self.sites[self.index]

    @property
    def is_first(self) -> bool:
        """True for the first of the sites."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """True for the last of the sites."""
        return self.index == len(self.sites) - 1

    def shared(self, build: Callable[[], Shared]) -> Shared:
        """Return the one object that the deltas of all sites share; the first call builds it.

        A module that becomes a child of every delta is counted, trained and saved once. Its frozen tensors must be
        buffers. An object that is no module is an attribute of the deltas; where it keeps facts of a forward pass, it
        must be empty in copies of the model (see `TensorTable`).
        """
        if not self._shared:
            self._shared.append(build())
        shared: Shared = self._shared[0]
        return shared

    def map_sizes(self) -> SiteSizes:
        """Return the sizes of the feature maps before the site, which are recorded from now on."""
        return self.tables.map_sizes.at(self.site.module)
