"""The model of a run while it is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vispeft import peft
from vispeft.training.compilation import not_compiled
from vispeft.training.seeds import preserved_rng
from vispeft.training.state import RunState


@contextlib.contextmanager
def evaluation_mode(state: RunState, *, update_statistics: bool, compiles: bool = False) -> Iterator[None]:
    """Set eval mode in the `with` block, and the averaged weights where there are any; undo both after it.

    The random generators are restored too, so that an evaluation does not change the training that follows. Compiled
    blocks run as they are, so that metrics are those of the adapter file in a model that is not compiled.

    update_statistics, compiles: see `LoopSettings`
    """
    averages = contextlib.nullcontext() if state.ema is None else state.ema.swapped_in()
    blocks = not_compiled() if compiles else contextlib.nullcontext()
    with averages, blocks, preserved_rng(state.fabric.device):
        state.model.eval()
        try:
            yield
        finally:
            peft.train_mode(state.model, update_statistics=update_statistics)
