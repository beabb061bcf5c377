from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vispeft.training.interrupt import delayed_interrupt, interruptible


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_interruptible__the_first_signal_requests_a_stop_and_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interrupt:
        press_ctrl_c()
        assert interrupt.is_requested
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_breaks__stops_at_once() -> None:
    with interruptible() as interrupt:
        with pytest.raises(KeyboardInterrupt), interrupt.breaks():
            press_ctrl_c()
        assert interrupt.is_requested
        with pytest.raises(KeyboardInterrupt), interrupt.breaks():
            pytest.fail("after a request to stop, long work must not begin")


def test_interruptible__a_forked_loader_process_ignores_it(capfd: pytest.CaptureFixture[str]) -> None:
    with interruptible():
        child = os.fork()
        if child == 0:
            press_ctrl_c()
            press_ctrl_c()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert "Stopping" not in capfd.readouterr().err


def test_interruptible__does_nothing_in_another_thread() -> None:
    seen: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            seen.append(interrupt.is_requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def interrupted_import(steps: list[str]) -> None:
    with delayed_interrupt():
        try:
            press_ctrl_c()
        except BaseException:
            steps.append("lost")
        steps.append("end")
    steps.append("after")


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Python's own handler, which a process that a shell starts in the background does not have."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_delayed_interrupt__survives_code_that_catches_everything() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_import(steps)
    assert steps == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_delayed_interrupt__leaves_the_request_to_who_records_it() -> None:
    with interruptible() as interrupt:
        with delayed_interrupt():
            press_ctrl_c()
            assert not interrupt.is_requested
        assert interrupt.is_requested
