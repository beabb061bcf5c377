"""Ctrl-C and SIGTERM: the first requests a stop after the step, the second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from lightning_fabric import Fabric


class Interrupt:
    """Request to stop, recorded from signals. Created by `interruptible`.

    is_requested: True from the first signal to this process on
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._is_breaking = False
        self._process_id = os.getpid()

    @contextlib.contextmanager
    def breaks(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at once on a signal in the `with` block or before: for work that can be repeated."""
        self._is_breaking = True
        try:
            if self.is_requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_breaking = False

    def must_stop(self, fabric: Fabric) -> bool:
        """Tell whether a stop was requested in any process. Every process must call this."""
        if fabric.world_size > 1:
            requested = torch.tensor(float(self.is_requested), device=fabric.device)
            total = fabric.all_reduce(requested, reduce_op="sum")
            self.is_requested = bool(torch.as_tensor(total) > 0)
        return self.is_requested

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """Record the first signal; raise KeyboardInterrupt on the second, or at once within `breaks`."""
        # loader processes inherit the handler by fork, but their parent decides when they end
        if os.getpid() != self._process_id:
            return
        is_second = self.is_requested
        self.is_requested = True
        if is_second or self._is_breaking:
            raise KeyboardInterrupt
        # print is not safe in a handler: it may have interrupted a print
        os.write(2, b"\nStopping after this step and saving. Once more stops at once, without saving.\n")


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn SIGINT and SIGTERM into a request to stop in the `with` block. No effect outside the main thread."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.signal(number, interrupt.handle) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block: for imports of libraries, some of which catch and lose it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    earlier = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
    if held:
        signal.raise_signal(signal.SIGINT)
