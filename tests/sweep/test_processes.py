"""Sweeps with killed processes: no trial is lost or done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# each starts several commands; what they do after a death is tested in one process in test_study.py and test_run.py
pytestmark = pytest.mark.slow

GRID = {"space": {"train.lr": [0.001, 0.002, 0.003]}}


def started(path: Path, *words: str) -> subprocess.Popen[str]:
    """Start a sweep in a process, in the folder of its file."""
    command = [sys.executable, "-m", "vispeft", "sweep", str(path), *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=path.parent, preexec_fn=heed_ctrl_c, **pipes)


def heed_ctrl_c() -> None:
    """Restore SIGINT, which a process that a shell starts in the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(path: Path, *words: str) -> str:
    """Run a sweep to its end and return its standard error."""
    process = started(path, *words)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def table(root: Path) -> list[dict[str, Any]]:
    """Return the trials of a sweep without their times and paths."""
    trials: list[dict[str, Any]] = json.loads((root / "results.json").read_text())["trials"]
    for trial in trials:
        trial.pop("directory")
        for name in ("train_seconds", "evaluate_seconds", "peak_memory_bytes"):
            trial["metrics"].pop(name)
    return trials


def worker_on(root: Path, number: int) -> int:
    """Return the process that holds the lock of a trial."""
    inode = (root / "locks" / f"{number:04d}").stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return next(int(words[4]) for words in lines if words[5].endswith(f":{inode}"))


def test_sweep__killed_and_started_again_ends_the_same(folder: Any) -> None:
    path = folder.write(GRID)
    root = path.parent / "runs" / "small-1"
    killed = started(path)
    # in the middle of the second trial
    wait_for(root / "trials" / "0002" / "checkpoints" / "last.pt", killed)
    killed.kill()
    killed.communicate()
    err = finished(path)
    assert "resumed, 1 of 3 trials are done" in err
    assert "[1/3]" not in err
    finished(path, "--out", "undisturbed")
    undisturbed = path.parent / "undisturbed"
    assert table(root) == table(undisturbed)
    for name in ("adapter.safetensors", "predictions_val.json"):
        found, expected = (one / "trials" / "0002" / name for one in (root, undisturbed))
        assert found.read_bytes() == expected.read_bytes()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux to find out which worker has a trial")
def test_sweep__a_killed_workers_trial_is_done_by_another(folder: Any, postgresql: str) -> None:
    words = ("sweep.workers=2", f"sweep.storage={postgresql}", "train.steps=24", "train.eval_every=2")
    path = folder.write(GRID)
    root = path.parent / "runs" / "small-1"
    parent = started(path, *words)
    wait_for(root / "trials" / "0002" / "checkpoints" / "last.pt", parent)
    os.kill(worker_on(root, 2), signal.SIGKILL)
    _, err = parent.communicate(timeout=300)
    assert parent.returncode == 0, err
    assert "1 of 2 workers were killed" in err
    assert [err.count(f"[{number}/3]") for number in (1, 2, 3)] == [1, 1, 1]
    assert [(trial["state"], trial["parameters"]["train.lr"]) for trial in table(root)] == [
        ("complete", 0.001),
        ("complete", 0.002),
        ("complete", 0.003),
    ]
    lines = [json.loads(line) for line in (root / "trials" / "0002" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == list(range(2, 25, 2))


def test_sweep__workers_stop_at_ctrl_c(folder: Any) -> None:
    words = ("sweep.workers=2", "train.steps=1000", "train.eval_every=500")
    path = folder.write(GRID)
    root = path.parent / "runs" / "small-1"
    process = started(path, *words)
    wait_for(root / "trials" / "0002" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"Resume with: vispeft sweep {path} {' '.join(words)}" in err
    assert "running" in {trial["state"] for trial in json.loads((root / "results.json").read_text())["trials"]}
