"""Order in which images are drawn: one endless stream per seed, split into batches, so that a run resumes exactly."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.dataset import Draw


class Draws(Protocol):
    """Batches of draws; each iteration gives the same ones."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[Draw]]: ...


def repeat_factors(coco_set: CocoSet, threshold: float | None = None) -> NDArray[np.float64]:
    """Return the draws of each image per epoch that repeat rare classes (Gupta et al. 2019, section 4.4).

    A class in a fraction f of the images has the factor max(1, sqrt(threshold / f)). An image has the largest factor
    of its classes.

    threshold: fraction of the images. None: the median of the classes, so that half of them are rare in any set; the
        published 0.001 is that of a set of 1,200 classes
    """
    classes = [{annotation.category_idx for annotation in group} for group in coco_set.annotations]
    counts = Counter(category_idx for group in classes for category_idx in group)
    if threshold is None:
        threshold = statistics.median(counts.values()) / len(classes) if counts else 0.0
    factor = {c: max(1.0, (threshold * len(classes) / count) ** 0.5) for c, count in counts.items()}
    return np.array([max((factor[c] for c in group), default=1.0) for group in classes])


def epoch_order(factors: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the shuffled image indices of an epoch. A factor of 2.3 gives two draws, and a third in 3 of 10 epochs."""
    rng = np.random.default_rng((seed, epoch))
    times = np.floor(factors) + (rng.random(len(factors)) < factors % 1)
    return rng.permutation(np.repeat(np.arange(len(factors)), times.astype(np.int64)))


@dataclass(frozen=True)
class TrainBatches:
    """Batches of draws for one process: steps `start_step` to `steps` of an endless stream of shuffled epochs.

    batch_size: per process. The stream is the same for every number of processes; a step takes
    `batch_size * world_size` draws of it, of which this process gets its own share.
    variants: None numbers the draws one after another, so that each is augmented anew; else epoch e draws every image
    as its variant e modulo this many
    """

    factors: NDArray[np.float64]
    batch_size: int
    steps: int
    start_step: int
    seed: int
    rank: int
    world_size: int
    variants: int | None = None

    def __len__(self) -> int:
        return max(self.steps - self.start_step, 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        per_step = self.batch_size * self.world_size
        first = self.start_step * per_step
        draws = self._stream(first)
        for _ in range(len(self)):
            step = [next(draws) for _ in range(per_step)]
            yield step[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _stream(self, first: int) -> Iterator[Draw]:
        """Yield the draws from number `first` on."""
        start, epoch = 0, 0
        while True:
            order = epoch_order(self.factors, self.seed, epoch)
            skipped = max(first - start, 0)
            for place, index in enumerate(order[skipped:].tolist(), start=start + skipped):
                yield Draw(index, place if self.variants is None else epoch % self.variants)
            start, epoch = start + len(order), epoch + 1


@dataclass(frozen=True)
class EvalBatches:
    """Every image once, in order, distributed to the processes in turn; the last batch may be smaller."""

    num_images: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.num_images, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        mine = range(self.rank, self.num_images, self.world_size)
        for start in range(0, len(mine), self.batch_size):
            yield [Draw(index) for index in mine[start : start + self.batch_size]]


@dataclass(frozen=True)
class TileBatches:
    """Every tile of every image once; all tiles of an image go to one process. Draw numbers are those of the tiles.

    counts: tiles of each image
    """

    counts: tuple[int, ...]
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-sum(self.counts[self.rank :: self.world_size]) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        images = range(self.rank, len(self.counts), self.world_size)
        draws = (Draw(index, number) for index in images for number in range(self.counts[index]))
        while batch := list(itertools.islice(draws, self.batch_size)):
            yield batch
