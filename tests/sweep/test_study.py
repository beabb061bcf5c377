"""Claims of trials, without training: no trial is lost or done twice, at whatever point a worker dies."""

from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from vispeft.errors import TrainingError
from vispeft.sweep.study import Claim, SharedStudy, TrialLostError

GRID = {"space": {"train.lr": [1e-3, 1e-2], "train.clip": [None, 1.0]}, "seeds": [3, 4]}
TPE = {
    "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "train.batch_size": {"low": 1, "high": 4}},
    "seeds": [3, 4],
    "sampler": "tpe",
    "trials": 7,
}


def taken(shared: SharedStudy) -> Claim:
    claim = shared.take().claim
    assert claim is not None
    return claim


def complete(shared: SharedStudy, claim: Claim) -> None:
    lr = claim.run.labels["train.lr"]
    shared.tell(claim, TrialState.COMPLETE, values=[lr], metrics={"segm/AP": lr})


def die(claim: Claim) -> None:
    """Leave a trial in the state after the death of its worker: the lock is free, the state is running."""
    claim.lock.release()


def finish_all(shared: SharedStudy) -> list[tuple[int, str]]:
    done = []
    while (claim := shared.take().claim) is not None:
        complete(shared, claim)
        done.append((claim.index, claim.run.title))
    return done


def runs_of(shared: SharedStudy) -> dict[int, tuple[str, TrialState]]:
    return {index: (shared.run_of(trial).title, trial.state) for index, trial in shared.trials().items()}


def test_take__a_grid_in_its_order_and_then_no_more(folder: Any) -> None:
    shared = folder.study(GRID)
    done = finish_all(shared)
    assert done == [(i, run.title) for i, run in enumerate(shared.sweep.grid)]
    assert len({title for _, title in done}) == 8
    turn = shared.take()
    assert (turn.claim, turn.is_over) == (None, True)
    assert [len(shared.study.trials), shared.take().is_over] == [8, True]


def test_take__two_workers_share_the_grid(folder: Any) -> None:
    first, second = folder.study(GRID), folder.study(GRID, session="two")
    claims = [taken(shared) for shared in (first, second) * 4]
    assert [claim.index for claim in claims] == list(range(8))
    turn = first.take()
    assert (turn.claim, turn.is_over) == (None, False)


@pytest.mark.parametrize("section", [GRID, TPE], ids=["grid", "tpe"])
def test_take__a_dead_workers_trial_is_taken_over(folder: Any, section: dict[str, Any]) -> None:
    undisturbed = folder.study(section, out="undisturbed")
    finish_all(undisturbed)
    for number in range(12):
        shared = folder.study(section, session=str(number))
        for _ in range(number % 3):
            if (claim := shared.take().claim) is not None:
                complete(shared, claim)
        claim = shared.take().claim
        if claim is not None:
            die(claim)
    finish_all(folder.study(section, session="last"))
    again = folder.study(section)
    assert runs_of(again) == runs_of(undisturbed)
    assert {trial.state for trial in again.study.trials} == {TrialState.COMPLETE}
    assert len(again.study.trials) == again.sweep.num_runs


class Dead(BaseException):
    """Error that simulates the death of a worker."""


@pytest.mark.parametrize("section", [GRID, TPE], ids=["grid", "tpe"])
def test_take__may_die_at_any_write(folder: Any, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    section = {**section, "trials": 2} if "trials" in section else section
    undisturbed = folder.study(section, out="undisturbed")
    finish_all(undisturbed)
    writes = ("create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_state_values")
    for die_after in range(1, 28):
        shared = folder.study(section, session=str(die_after))
        left = [die_after]

        def counted(original: Any, left: list[int] = left) -> Any:
            def write(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Dead
                return original(*args, **kwargs)

            return write

        with monkeypatch.context() as patch:
            for name in writes:
                patch.setattr(shared.storage, name, counted(getattr(shared.storage, name)))
            claim = None
            try:
                while (claim := shared.take().claim) is not None:
                    complete(shared, claim)
            except Dead:
                if claim is not None:
                    die(claim)
    finish_all(folder.study(section, session="last"))
    again = folder.study(section)
    states = Counter((i, trial.state) for trial in again.study.trials for i in [trial.user_attrs["index"]])
    assert states == Counter((i, TrialState.COMPLETE) for i in range(again.sweep.num_runs))
    assert runs_of(again) == runs_of(undisturbed)


def test_take__a_living_workers_trial_is_its_own(folder: Any) -> None:
    first, second = folder.study(GRID), folder.study(GRID)
    claim = taken(first)
    assert taken(second).index == claim.index + 1
    first.check_own(claim)


def test_tell__refused_where_the_trial_was_taken_over(folder: Any) -> None:
    first, second = folder.study(GRID), folder.study(GRID)
    claim = taken(first)
    die(claim)
    again = taken(second)
    assert (again.index, again.run.title) == (claim.index, claim.run.title)
    with pytest.raises(TrialLostError):
        complete(first, claim)
    complete(second, again)
    assert len(second.study.trials) == 1


def test_take__gives_up_a_trial_that_kills_its_process(folder: Any) -> None:
    for _ in range(10):
        claim = taken(folder.study(GRID))
        assert claim.index == 0
        die(claim)
    assert taken(folder.study(GRID)).index == 1
    failed = folder.study(GRID).trials()[0]
    assert failed.state == TrialState.FAIL
    assert "died 10 times without progress" in failed.user_attrs["message"]


def test_release__is_no_failed_attempt(folder: Any) -> None:
    shared = folder.study(GRID)
    for _ in range(9):
        claim = taken(shared)
        assert (claim.index, claim.attempt) == (0, 1)
        shared.release(claim)


def test_queue_failed__brings_them_back_once(folder: Any) -> None:
    shared = folder.study(GRID)
    complete(shared, taken(shared))
    shared.tell(taken(shared), TrialState.FAIL, message="no.")
    shared.queue_failed()
    assert shared.queue_failed() == 0
    assert [index for index, _ in finish_all(shared)] == [1, *range(2, 8)]
    assert all(trial.state == TrialState.COMPLETE for trial in shared.trials().values())


def test_take__stops_where_the_first_three_fail(folder: Any) -> None:
    shared = folder.study(GRID)
    for number in range(3):
        shared.tell(taken(shared), TrialState.FAIL, message=f"message {number}.")
    with pytest.raises(TrainingError, match=r"first 3 trials all failed\. The last error: message 2\."):
        shared.take()
    assert taken(folder.study(GRID, session="two")).index == 3


def test_sampled__more_trials_go_on(folder: Any) -> None:
    short = folder.study({**TPE, "trials": 5})
    finish_all(short)
    finish_all(folder.study(TPE))
    undisturbed = folder.study(TPE, out="undisturbed")
    finish_all(undisturbed)
    assert runs_of(folder.study(TPE)) == runs_of(undisturbed)
    assert len({title for title, _ in runs_of(undisturbed).values()}) == 14


def test_postgresql__workers_on_several_machines(folder: Any, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {**GRID, "storage": postgresql, "heartbeat": 1}
    here, there = folder.study(section, out="here"), folder.study(section, out="there")
    stays, dies = taken(here), taken(there)
    assert (stays.index, dies.index) == (0, 1)
    die(dies)
    # the machine that died is another one: its missing heartbeats are the only sign
    monkeypatch.setattr("vispeft.sweep.study.machine_id", lambda: "elsewhere")
    assert taken(here).index == 2
    _silence(there, dies, seconds=60)
    again = taken(here)
    assert (again.index, again.run.title) == (1, dies.run.title)
    with pytest.raises(TrialLostError):
        complete(there, dies)


def _silence(shared: SharedStudy, claim: Claim, *, seconds: int) -> None:
    """Move the last heartbeat of a trial into the past."""
    import sqlalchemy

    with shared.storage.engine.begin() as connection:
        statement = "UPDATE trial_heartbeats SET heartbeat = heartbeat - make_interval(secs => :s) WHERE trial_id = :t"
        connection.execute(sqlalchemy.text(statement), {"s": seconds, "t": claim.trial_id})


def test_study__opens_with_optuna_itself(folder: Any) -> None:
    shared = folder.study(GRID)
    finish_all(shared)
    url = shared.directory.storage_url(shared.sweep)
    study = optuna.load_study(study_name=shared.sweep.study_name, storage=url)
    assert study.metric_names == ["segm/AP"]
    assert study.best_trial.params == {"train.lr": 1e-2, "train.clip": None}
