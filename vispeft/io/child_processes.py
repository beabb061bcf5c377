"""Commands of vispeft in processes of their own, which end with the process that started them, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

# environment variable of such a process
_VARIABLE = "VISPEFT_CHILD"


def start_child(
    words: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `vispeft` with these arguments. Its standard input stays open as long as this process runs.

    environment: variables beside those of this process
    options: of `subprocess.Popen`
    """
    return subprocess.Popen(
        [sys.executable, "-m", "vispeft", *words],
        env={**os.environ, _VARIABLE: "1", **(environment or {})},
        stdin=subprocess.PIPE,
        **options,
    )


def end_with_parent() -> None:
    """Let a process of `start_child` stop by SIGTERM when its parent ends; nothing in others."""
    # its own children are none of ours
    if os.environ.pop(_VARIABLE, None):
        threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    """Wait until standard input is closed, and stop this process."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
