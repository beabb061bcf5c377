"""Fixture that runs a command in the test process."""

from collections.abc import Callable

import pytest

from vispeft.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Function that runs a command in the test process and returns status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), out, err

    return run
