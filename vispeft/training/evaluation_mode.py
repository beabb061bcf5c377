"""The model of a run while it is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vispeft import peft
from vispeft.training.seeds import preserved_rng
from vispeft.training.state import RunState


@contextlib.contextmanager
def evaluation_mode(state: RunState, *, update_statistics: bool) -> Iterator[None]:
    """Set eval mode in the `with` block, and the averaged weights where there are any; undo both after it.

    The random generators are restored too, so that an evaluation does not change the training that follows.

    update_statistics: see `LoopSettings`
    """
    averages = contextlib.nullcontext() if state.ema is None else state.ema.swapped_in()
    with averages, preserved_rng(state.fabric.device):
        state.model.eval()
        try:
            yield
        finally:
            peft.train_mode(state.model, update_statistics=update_statistics)
