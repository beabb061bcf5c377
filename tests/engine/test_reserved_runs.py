"""Names of run directories, which of them are refused, and their reservation by one process."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from vispeft.engine import RunDirectory, begun_run_directory, new_run_directory
from vispeft.errors import TrainingError
from vispeft.io.locks import FileLock, LocksMissingError


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_new_run_directory__takes_the_next_number_for_each_of_several_runs() -> None:
    Path("runs/a-2").mkdir(parents=True)
    with ExitStack() as stack:
        found = [stack.enter_context(new_run_directory(None, name)).root for name in ("a", "a", "b")]
        assert found == [Path("runs/a-1"), Path("runs/a-3"), Path("runs/b-1")]
        RunDirectory(Path("runs/a-3")).config.touch()
    # what is empty goes
    assert sorted(Path("runs").iterdir()) == [Path("runs/a-2"), Path("runs/a-3")]
    assert list(Path("runs/a-3").iterdir()) == [Path("runs/a-3/config.yaml")]


def test_new_run_directory__is_written_by_one_process_at_a_time() -> None:
    match = "`out` is being written by another"
    first, second = new_run_directory(Path("out"), "a"), new_run_directory(Path("out"), "a")
    with first, pytest.raises(TrainingError, match=match), second:
        pass
    run = RunDirectory(Path("out"))
    run.root.mkdir()
    run.config.touch()
    first, second = begun_run_directory(Path("out"), "a"), begun_run_directory(Path("out"), "a")
    with first, pytest.raises(TrainingError, match=match), second:
        pass


def test_new_run_directory__is_free_again_after_an_error() -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), new_run_directory(Path("out"), "a"):
            raise ZeroDivisionError
        assert not Path("out").exists()


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK"])
def test_new_run_directory__reserves_nothing_in_later_processes_of_a_run(
    rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_run_directory(Path("out"), "a") as first:
        monkeypatch.setenv(rank, "1")
        with new_run_directory(Path("out"), "a") as later:
            assert later == first
    with new_run_directory(None, "a") as numbered:
        assert not numbered.root.exists()


def test_new_run_directory__goes_on_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LocksMissingError("no locks")

    monkeypatch.setattr(FileLock, "try_hold", fail)
    with new_run_directory(Path("out"), "a") as run:
        assert run.root == Path("out")


def test_new_run_directory__begins_again_where_a_run_ended_before_its_first_checkpoint() -> None:
    run = RunDirectory(Path("out"))
    run.root.mkdir()
    for path in (run.config, run.environment, run.annotations, run.metrics, run.root / ".x.1.partial"):
        path.touch()
    (run.root / "tensorboard").mkdir()
    with new_run_directory(Path("out"), "a") as found:
        assert found.root == Path("out")
    run.checkpoint.parent.mkdir()
    run.checkpoint.touch()
    with pytest.raises(TrainingError, match="`out` is there already"), new_run_directory(Path("out"), "a"):
        pass


def test_new_run_directory__refuses_what_is_there() -> None:
    Path("out").mkdir()
    Path("out/file").touch()
    with pytest.raises(TrainingError, match="`out` is there already"), new_run_directory(Path("out"), "a"):
        pass


def test_new_run_directory__refuses_a_configuration_that_no_run_wrote() -> None:
    Path("out").mkdir()
    Path("out/config.yaml").write_text("# mine\n")
    with pytest.raises(TrainingError, match="`out` is there already"), new_run_directory(Path("out"), "a"):
        pass
    assert Path("out/config.yaml").read_text() == "# mine\n"


def test_begun_run_directory__takes_the_highest_number_with_a_configuration() -> None:
    with pytest.raises(TrainingError, match="There is no run"), begun_run_directory(None, "a"):
        pass
    for number in (9, 10, 11):
        Path(f"runs/a-{number}").mkdir(parents=True)
    for number in (9, 10):
        Path(f"runs/a-{number}/config.yaml").touch()
    with begun_run_directory(None, "a") as found:
        assert found.root == Path("runs/a-10")
    with pytest.raises(TrainingError, match=r"has no config\.yaml"), begun_run_directory(Path("runs"), "a"):
        pass
