"""When a command at run time has taken effect, and what it says when it cannot: over a board that the test fills."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.control_client import ask
from actors.control_commands import SystemCommands, registry_of
from actors.control_progress import OVER, Change, Seen, done
from actors.control_protocol import (
    PROTOCOL,
    AskStacks,
    Empty,
    Info,
    OnWorker,
    Refused,
    Stacks,
    Stopping,
    StopSystem,
    WorkerChanged,
)
from actors.control_socket import ControlServer, Peer
from actors.own_stacks import own_stacks
from actors.pause_request import PauseRequest
from actors.rundir import RunDirectory
from bus import BoardCell, Pause, WorkerState, pause_cell

from .faked import SECOND, FakeSystem

NOBODY = Peer(None, None)
UP = Seen(
    system=WorkerState.RUNNING,
    state=WorkerState.RUNNING,
    supervised=WorkerState.RUNNING,
    pid=4711,
    epoch=2,
    deaths=3,
    told=0,
    paused=0,
)


# ------------------------------------------------------------------------------------------------- the decision
@pytest.mark.parametrize(
    ("change", "now", "is_done"),
    [
        (Change.RESTART, {}, False),
        (Change.RESTART, {"state": WorkerState.DEAD, "supervised": WorkerState.DEAD, "pid": 0}, False),
        (Change.RESTART, {"epoch": 3, "state": WorkerState.RECOVERING, "supervised": WorkerState.STARTING}, False),
        (Change.RESTART, {"epoch": 3, "state": WorkerState.WAITING}, False),
        (Change.RESTART, {"epoch": 3, "state": WorkerState.RUNNING, "supervised": WorkerState.STARTING}, False),
        (Change.RESTART, {"epoch": 3}, True),
        (Change.RESTART, {"epoch": 4, "told": pause_cell(1, Pause.PAUSE), "paused": pause_cell(1, Pause.PAUSE)}, True),
        (Change.RESTART, {"supervised": WorkerState.STOPPED, "state": WorkerState.STOPPED}, False),
    ],
)
def test_a_change_is_done_when_the_worker_shows_it(change: Change, now: dict, is_done: bool) -> None:
    assert done(change, "stats", UP, replace(UP, **now)) is is_done


ASKED = [(Change.PAUSE, Pause.PAUSE), (Change.DRAIN, Pause.DRAIN), (Change.RESUME, Pause.RUN)]


@pytest.mark.parametrize(("change", "pause"), ASKED)
def test_a_pause_is_done_when_the_worker_says_so_of_this_request_or_a_later_one(change: Change, pause: Pause) -> None:
    def is_done(number: int, told: tuple[int, Pause], paused: tuple[int, Pause]) -> bool:
        now = replace(UP, told=pause_cell(*told), paused=pause_cell(*paused))
        return done(change, "stats", UP, now, PauseRequest(pause, number))

    other = Pause.PAUSE if pause is Pause.RUN else Pause.RUN
    assert not is_done(0, (4, pause), (4, pause)), "the request before it is not it"
    assert not is_done(5, (4, pause), (4, pause)), "nor when the supervisor has only taken it"
    assert not is_done(0, (4, other), (4, other)), "and has not overridden it"
    assert not is_done(5, (5, pause), (4, pause)), "the worker has not seen it"
    assert not is_done(5, (5, pause), (0, Pause.RUN)), "it is under way"
    assert is_done(5, (5, pause), (5, pause))
    assert not is_done(5, (7, pause), (5, pause)), "somebody asked for the same again"
    assert is_done(5, (7, pause), (7, pause))


@pytest.mark.parametrize(("change", "pause"), ASKED)
@pytest.mark.parametrize("later", Pause)
def test_who_was_overridden_is_told_at_once(change: Change, pause: Pause, later: Pause) -> None:
    now = replace(UP, told=pause_cell(6, later), paused=pause_cell(5, pause))
    if later is pause:
        assert not done(change, "stats", UP, now, PauseRequest(pause, 5))
        return
    name = {Pause.RUN: "resume", Pause.PAUSE: "pause", Pause.DRAIN: "drain"}[later]
    with pytest.raises(Refused, match=f"^stats: overridden by another request, to {name}$") as refused:
        done(change, "stats", UP, now, PauseRequest(pause, 5))
    assert refused.value.error == "failed"


@pytest.mark.parametrize("state", sorted(OVER))
def test_a_restart_brings_back_who_had_ended_or_was_given_up(state: WorkerState) -> None:
    over = replace(UP, state=state, supervised=state, pid=0)
    assert not done(Change.RESTART, "stats", over, over)
    assert not done(Change.RESTART, "stats", over, replace(over, supervised=WorkerState.STARTING))
    assert done(Change.RESTART, "stats", over, replace(UP, epoch=3))


def test_a_restart_of_one_that_is_given_up_again_is_refused() -> None:
    over = replace(UP, supervised=WorkerState.GAVE_UP, pid=0)
    with pytest.raises(Refused, match="stats: it was given up"):
        done(Change.RESTART, "stats", over, replace(over, deaths=over.deaths + 1))


@pytest.mark.parametrize("change", Change)
@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.STOPPING, WorkerState.STOPPED])
def test_no_change_while_the_system_ends(change: Change, state: WorkerState) -> None:
    with pytest.raises(Refused, match=f"stats: the system is {state.name.lower()}") as refused:
        done(change, "stats", UP, replace(UP, system=state))
    assert refused.value.error == "ending"


@pytest.mark.parametrize("change", [Change.PAUSE, Change.DRAIN, Change.RESUME])
@pytest.mark.parametrize("state", sorted(OVER))
def test_a_worker_that_has_ended_for_good_cannot_be_paused(change: Change, state: WorkerState) -> None:
    with pytest.raises(Refused, match="stats: it has ended and is not started again"):
        done(change, "stats", UP, replace(UP, supervised=state))


# ------------------------------------------------------------------------------------------------- the commands
class Asked:
    """A supervisor that only writes down what it is asked for; the test does the rest."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.number = 0

    def request_restart(self, worker: str) -> None:
        self.calls.append(("restart", worker))

    def request_pause(self, worker: str) -> PauseRequest:
        return self.pause_request("pause", worker, Pause.PAUSE)

    def request_drain_worker(self, worker: str) -> PauseRequest:
        return self.pause_request("drain", worker, Pause.DRAIN)

    def request_resume(self, worker: str) -> PauseRequest:
        return self.pause_request("resume", worker, Pause.RUN)

    def pause_request(self, name: str, worker: str, pause: Pause) -> PauseRequest:
        self.calls.append((name, worker))
        return PauseRequest(pause, self.number)

    def request_stop(self, drain: bool = True, reason: str = "requested") -> None:
        self.calls.append(("stop", str(drain), reason))

    def request_stop_now(self, reason: str = "requested") -> None:
        self.calls.append(("stop now", reason))


class Served:
    def __init__(self, home: Path) -> None:
        self.system = FakeSystem(home, "trades")
        self.path = self.system.path
        for worker in self.system.workers:
            self.system.fill(worker, SUPERVISED_STATE=WorkerState.RUNNING)
        self.asked = Asked()
        self.commands = SystemCommands(
            "trades",
            self.system.identity.run_id,
            self.system.workers,
            self.system.board,
            self.asked,
            lambda worker: f"the stacks of {worker}",
        )
        self.directory = RunDirectory.open(self.path)
        self.server = ControlServer(self.directory, registry_of(self.commands))
        self.server.start()

    def close(self) -> None:
        self.server.close()
        self.directory.close()
        self.system.unlink()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "home")
    yield made
    made.close()


def test_a_restart_is_asked_for_and_awaited(served: Served) -> None:
    progress = served.commands.change(Change.RESTART, OnWorker("stats"), NOBODY)
    assert callable(progress)
    assert served.asked.calls == [("restart", "stats")]
    assert progress() is None
    served.system.fill("stats", PID=0, STATE=WorkerState.DEAD, SUPERVISED_STATE=WorkerState.STARTING)
    assert progress() is None
    served.system.fill("stats", PID=4711, EPOCH=2, STATE=WorkerState.RUNNING, SUPERVISED_STATE=WorkerState.RUNNING)
    changed = progress()
    assert isinstance(changed, WorkerChanged)
    assert (changed.worker, changed.outcome, changed.pid, changed.epoch) == ("stats", "restarted", 4711, 2)
    assert changed.seconds >= 0


@pytest.mark.parametrize("change", Change)
def test_without_waiting_the_answer_is_that_it_was_asked(served: Served, change: Change) -> None:
    answer = ask(served.path, change.value, OnWorker("stats", wait=False), WorkerChanged)
    assert (answer.outcome, answer.pid, answer.epoch) == ("asked", os.getpid(), 1)
    assert served.asked.calls == [(change.value, "stats")]


def test_what_is_not_done_in_time_is_told_with_what_is_missing(served: Served) -> None:
    served.system.fill("stats", STATE=WorkerState.RECOVERING)
    with pytest.raises(Refused, match=r"^stats: not restarted within 0\.05 s: the worker is recovering$") as refused:
        ask(served.path, "restart", OnWorker("stats", timeout_seconds=0.05), WorkerChanged)
    assert refused.value.error == "not-in-time"
    served.system.fill("stats", STATE=WorkerState.RUNNING)
    with pytest.raises(Refused, match="the supervisor has not passed it on; the worker is running"):
        ask(served.path, "pause", OnWorker("stats", timeout_seconds=0.05), WorkerChanged)
    served.asked.number = 1
    served.system.fill("stats", PAUSE=pause_cell(1, Pause.DRAIN))
    with pytest.raises(Refused, match=r"not drained within 0 s: the worker is running$"):
        ask(served.path, "drain", OnWorker("stats", timeout_seconds=0), WorkerChanged)


def test_a_supervisor_whose_loop_hangs_is_told(served: Served) -> None:
    served.system.board.set(BoardCell.SUPERVISOR_HEARTBEAT_NS, time.monotonic_ns() - 9 * SECOND)
    with pytest.raises(Refused, match=r"the supervisor's loop hangs, it has last turned (9|\d\d)\.\d s ago"):
        ask(served.path, "pause", OnWorker("stats", timeout_seconds=0.05), WorkerChanged)
    silent = ask(served.path, "info", Empty(), Info).loop_silent_seconds
    assert silent is not None
    assert silent > 8


def test_an_unknown_worker_is_refused_with_a_suggestion_and_those_that_are_known(served: Served) -> None:
    for command in ("restart", "pause", "drain", "resume"):
        with pytest.raises(Refused) as refused:
            ask(served.path, command, OnWorker("stat"), WorkerChanged)
        assert refused.value.error == "unknown-worker"
        assert (
            str(refused.value) == "trades has no worker 'stat' (its workers are ingest, stats); did you mean 'stats'?"
        )
    with pytest.raises(Refused, match="trades has no worker 'xyz'; the workers are ingest, stats"):
        ask(served.path, "stacks", AskStacks("xyz"), Stacks)
    assert served.asked.calls == []


def test_a_worker_that_gave_up_meanwhile_ends_the_waiting(served: Served) -> None:
    progress = served.commands.change(Change.RESTART, OnWorker("stats"), NOBODY)
    assert callable(progress)
    served.system.fill("stats", SUPERVISED_STATE=WorkerState.GAVE_UP)
    with pytest.raises(Refused, match="stats: it was given up"):
        progress()


def test_a_stop_says_who_asked_for_it(served: Served) -> None:
    assert ask(served.path, "stop", StopSystem(), Stopping).state == "running"
    assert ask(served.path, "stop", StopSystem(now=True), Stopping).state == "running"
    who = f"process {os.getpid()} asked for it"
    assert served.asked.calls == [("stop", "True", who), ("stop now", who)]


def test_stacks_of_a_worker_and_of_the_supervisor_itself(served: Served) -> None:
    stacks = ask(served.path, "stacks", AskStacks("stats"), Stacks)
    assert (stacks.pid, stacks.text) == (os.getpid(), "the stacks of stats")
    stacks = ask(served.path, "stacks", AskStacks(), Stacks)
    assert stacks.pid == os.getpid()
    assert "test_stacks_of_a_worker_and_of_the_supervisor_itself" in stacks.text


def test_own_stacks_show_all_threads_the_main_one_first() -> None:
    text = own_stacks()
    assert text.startswith("thread MainThread, which asks (most recent call last):\n")
    assert "own_stacks()" in text


def test_info_tells_how_the_system_is(served: Served) -> None:
    served.system.fill("stats", EPOCH=7, PAUSED=pause_cell(9, Pause.DRAIN))
    served.system.fill("ingest", PAUSED=pause_cell(8, Pause.RUN))
    info = ask(served.path, "info", Empty(), Info)
    assert (info.system, info.pid, info.protocol, info.state) == ("trades", os.getpid(), PROTOCOL, "running")
    assert info.run_id == served.system.identity.run_id
    assert [(one.name, one.state, one.epoch, one.paused) for one in info.workers] == [
        ("ingest", "running", 1, False),
        ("stats", "running", 7, True),
    ]
