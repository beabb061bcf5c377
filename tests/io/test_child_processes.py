"""Processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# runs a program in the place of Python, which waits
PARENT = """
import sys, time
from vispeft.io import child_processes
child_processes.sys.executable = sys.argv[1]
print(child_processes.start_child([]).pid, flush=True)
time.sleep(100)
"""
CHILD = """
import os, time
from vispeft.io.child_processes import end_with_parent
end_with_parent()
assert "VISPEFT_CHILD" not in os.environ
print("watches", flush=True)
time.sleep(100)
"""


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")
    # one whose end nobody has asked for is a zombie
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_end_with_parent__stops_when_standard_input_is_closed() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "VISPEFT_CHILD": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "watches\n"
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=60) == -signal.SIGTERM
    child.stdout.close()


def test_end_with_parent__leaves_other_processes_alone() -> None:
    code = CHILD.replace("time.sleep(100)", "time.sleep(0.2)")
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"watches\n")


def test_start_child__ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c \"$CHILD\"\n")
    program.chmod(0o755)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(program)],
        env={**os.environ, "CHILD": CHILD},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    lines = [parent.stdout.readline() for _ in range(2)]
    (number,) = (int(line) for line in lines if line.strip().isdecimal())
    assert "watches\n" in lines
    assert is_running(number)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 60
    while is_running(number):
        assert time.monotonic() < end
        time.sleep(0.02)
