"""Output of commands: results on standard output, messages on standard error."""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Return the console for results. Lines are wrapped only in a terminal, and brackets in names stay as they are."""
    is_terminal = sys.stdout.isatty()
    return Console(width=None if is_terminal else 200, highlight=False, markup=False, soft_wrap=not is_terminal)


def say(message: str) -> None:
    """Print a message on standard error, separate from the results."""
    print(message, file=sys.stderr, flush=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with text in its first column and numbers in the others."""
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def guarded(command: Callable[[], None], *, is_debug: bool) -> int:
    """Run a command and return its exit status. Print an error as one message on standard error.

    is_debug: print the traceback too
    """
    from vispeft.errors import VispeftError, describe_io_error

    warnings.showwarning = _show_warning
    threading.excepthook = _show_thread_error
    try:
        command()
    except VispeftError as error:
        return _failed(str(error), is_debug)
    except OSError as error:
        return _failed(f"A file cannot be read or written: {describe_io_error(error)}.", is_debug)
    except Exception as error:
        if _is_out_of_memory(error):
            return _failed(
                "There is not enough memory. Lower `train.batch_size` or `model.image_size`, or set "
                "`model.activation_checkpointing=true`.",
                is_debug,
            )
        if _is_kernel_error(error):
            return _failed(str(error), is_debug)
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        return _failed(
            f"Unexpected {type(error).__name__}: {first_line}. Run again with --debug for the traceback.", is_debug
        )
    return 0


def _failed(message: str, is_debug: bool) -> int:
    """Print the message of an error and return the exit status of a failure."""
    if is_debug:
        traceback.print_exc()
    say(f"error: {message}")
    return 1


def _is_out_of_memory(error: Exception) -> bool:
    """Return True for the errors with which Python, CUDA and torch report a lack of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _is_kernel_error(error: Exception) -> bool:
    """Return True for an error of the kernels. A command that never imported them cannot have raised one."""
    kernels = sys.modules.get("vispeft_kernels")
    return kernels is not None and isinstance(error, kernels.KernelError)


def _show_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Ignore an OSError in a writer's thread: the next write raises it again in the main thread."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning on one line, without its source location."""
    print(f"warning: {message}", file=file or sys.stderr, flush=True)
