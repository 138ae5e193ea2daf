"""The supervisor. First its decisions, turn by turn with a clock and processes of the test's own; then for real."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import queue
import secrets
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psutil
import pytest

from actors import events, supervisor
from actors.exits import ExitStatus, WorkerExit
from actors.hang import Limits
from actors.process import WorkerProcess, start_forkserver, stop_forkserver
from actors.restart import ChildSpec, Policy, Restart
from actors.supervisor import Supervisor
from bus import Board, BoardCell, Control, Field, Segment, Text, WorkerState
from tests.actors import targets
from tests.actors.waiting import dead_within, until

E = TypeVar("E", bound=events.Event)


class FakeProcess:
    """Dies when the test says so, or when it is killed and not stubborn."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.title = "ringleader: trades/fake"
        self.code: int | None = None
        self.pidfd = -1
        self.killed = self.closed = self.stubborn = False

    def poll(self) -> int | None:
        assert not self.closed
        return self.code

    def words(self) -> str:
        assert not self.closed
        return ""

    def kill(self) -> None:
        assert not self.closed
        self.killed = True
        if self.code is None and not self.stubborn:
            self.code = -signal.SIGKILL

    def close(self) -> None:
        self.closed = True


class Rig:
    """A supervisor whose world is in the hands of the test."""

    def __init__(self, *specs: ChildSpec, policy: Policy | None = None, **more: Any) -> None:
        names = [spec.name for spec in specs]
        self.board = Board.format(bytearray(Board.size(names)), names)
        self.now = 1000.0
        self.letter = "S"
        self.events: list[events.Event] = []
        self.launches: list[tuple[str, int, tuple[int, int] | None]] = []
        self.processes: dict[str, FakeProcess] = {}
        self.launch_fails: Exception | None = None
        self.quiet = True
        self.supervisor = Supervisor(
            "trades",
            specs,
            policy or Policy(max_restarts=5, period=60, backoff_step=0.5, jitter=0),
            self.board,
            self.launch,
            quiet=lambda: self.quiet,
            observer=self.events.append,
            letter=lambda pid: self.letter,
            clock=lambda: int(self.now * 1e9),
            random=lambda: 0.0,
            **more,
        )
        self.supervisor.begin()

    def state(self) -> WorkerState:
        return self.supervisor.state

    def last_launch(self) -> tuple[str, int, tuple[int, int] | None]:
        return self.launches[-1]

    def killed(self) -> list[str]:
        return [name for name, process in self.processes.items() if process.killed]

    def launch(self, name: str, epoch_floor: int, suspect: tuple[int, int] | None) -> FakeProcess:
        self.launches.append((name, epoch_floor, suspect))
        if self.launch_fails is not None:
            raise self.launch_fails
        assert name not in self.processes or self.processes[name].closed, "started while the one before lives"
        self.processes[name] = FakeProcess(100 + len(self.launches))
        return self.processes[name]

    def turn(self, after: float = 0.0) -> float | None:
        self.now += after
        return self.supervisor.turn()

    def up(self, *names: str, epoch: int | None = None) -> None:
        """These workers, or all of them, come up."""
        for name in names or self.board.names:
            block = self.board.block(name)
            floor = [floor for launched, floor, _ in self.launches if launched == name][-1]
            block.set(Field.PID, self.processes[name].pid)
            block.set(Field.EPOCH, floor + 1 if epoch is None else epoch)
            block.set(Field.STATE, WorkerState.RUNNING)
        self.turn()

    def acknowledge(self, *names: str) -> None:
        for name in names or self.board.names:
            block = self.board.block(name)
            block.set(Field.CONTROL_SEEN, block.get(Field.CONTROL))

    def die(self, name: str, code: int = -signal.SIGKILL, busy: tuple[int, int] | None = None, words: str = "") -> None:
        block = self.board.block(name)
        if busy is not None:
            block.set(Field.BUSY_PEER, busy[0] + 1)
            block.set(Field.BUSY_SEQ, busy[1])
        block.set_text(Text.LAST_WORDS, words)
        self.processes[name].code = code
        self.turn()

    def obey(self) -> None:
        """Everyone who is told to stop ends, the last one first."""
        while living := [name for name in self.board.names if not self.processes[name].closed]:
            told = [name for name in living if self.board.block(name).get(Field.CONTROL) == Control.STOP]
            assert told == living[-len(told) :], "told in the reverse order of their start"
            for name in told:
                if self.processes[name].code is None:
                    self.processes[name].code = 0
            self.turn()

    def seen(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def end(self) -> ExitStatus | None:
        assert self.turn() is None
        self.supervisor._end()
        return self.supervisor.status


def running(*names: str, policy: Policy | None = None, **more: Any) -> Rig:
    rig = Rig(*[ChildSpec(name) for name in names or ("a", "b")], policy=policy, **more)
    rig.turn()
    rig.up()
    return rig


# ------------------------------------------------------------------------------------------------------- start, death
def test_workers_are_started_in_order_and_the_system_is_up_when_all_are() -> None:
    rig = Rig(ChildSpec("a"), ChildSpec("b"))
    rig.turn()
    assert rig.launches == [("a", 0, None), ("b", 0, None)]
    rig.up("a")
    assert rig.state() is WorkerState.STARTING
    assert not rig.supervisor.wait_ready(0)
    rig.up("b", epoch=7)
    assert rig.state() is WorkerState.RUNNING
    assert rig.board.get(BoardCell.SYSTEM_STATE) == WorkerState.RUNNING
    assert rig.supervisor.wait_ready(0)
    assert rig.seen(events.WorkerReady) == [events.WorkerReady("a", 101, 1), events.WorkerReady("b", 102, 7)]
    assert rig.seen(events.SystemReady) == [events.SystemReady("trades")]


def test_the_system_is_up_without_those_who_may_stay_away() -> None:
    rig = Rig(ChildSpec("a", Restart.TEMPORARY), ChildSpec("b"))
    rig.turn()
    rig.die("a", -signal.SIGSEGV)
    assert not rig.supervisor.wait_ready(0)
    rig.up("b")
    assert rig.state() is WorkerState.RUNNING
    assert rig.supervisor.wait_ready(0)


def test_dead_worker_alone_is_started_again_at_once() -> None:
    rig = running()
    rig.die("a")
    assert [name for name, _, _ in rig.launches] == ["a", "b", "a"]
    assert rig.seen(events.WorkerDied) == [events.WorkerDied("a", 101, 1, "killed by SIGKILL", None)]
    assert rig.seen(events.WorkerRestarting) == [events.WorkerRestarting("a", 0.0, 1)]
    rig.up("a")
    assert len(rig.seen(events.WorkerReady)) == 3
    assert len(rig.seen(events.SystemReady)) == 1


def test_second_restart_backs_off_and_the_loop_waits_just_that_long() -> None:
    rig = running()
    rig.die("a")
    rig.up("a")
    rig.now += 0.1
    rig.die("a")
    assert len(rig.launches) == 3
    assert rig.turn(0.2) == pytest.approx(0.3)
    assert len(rig.launches) == 3
    rig.turn(0.3)
    assert len(rig.launches) == 4


def test_nothing_is_started_again_that_is_not_proven_dead() -> None:
    rig = running()
    for state in WorkerState:
        rig.board.block("a").set(Field.STATE, state)
        rig.board.block("a").set(Field.PID, 0)
        rig.board.block("a").set(Field.HEARTBEAT_NS, 0)
        rig.turn(100)
    assert len(rig.launches) == 2


def test_what_a_dead_worker_started_is_killed_before_it_is_let_go() -> None:
    rig = running()
    process = rig.processes["a"]
    rig.die("a", code=1)
    assert process.killed
    assert process.closed


def test_epoch_floor_grows_with_every_launch_and_is_never_below_a_seen_epoch() -> None:
    rig = running("a")
    rig.die("a")
    rig.up("a", epoch=41)
    rig.now += 10
    rig.die("a")
    rig.turn(10)
    rig.die("a")  # before it had written an epoch
    rig.turn(10)
    floors = [floor for _, floor, _ in rig.launches]
    assert floors == [0, 1, 41, 42]


def test_idle_supervisor_sleeps_long() -> None:
    rig = running()
    assert rig.turn() == supervisor.TICK


def test_heartbeat_is_that_of_the_last_turn() -> None:
    rig = running()
    rig.turn(5)
    assert rig.board.get(BoardCell.SUPERVISOR_HEARTBEAT_NS) == int(rig.now * 1e9)
    assert rig.board.get(BoardCell.SUPERVISOR_PID) == os.getpid()


# ------------------------------------------------------------------------------------------------------- who is blamed
def test_message_in_progress_is_the_suspect_of_the_next_launch_only() -> None:
    rig = running()
    rig.die("a", -signal.SIGSEGV, busy=(3, 17))
    assert rig.seen(events.WorkerDied)[0].blamed == (3, 17)
    assert rig.last_launch() == ("a", 1, (3, 17))
    assert rig.board.block("a").get(Field.BUSY_PEER) == rig.board.block("a").get(Field.BUSY_SEQ) == 0
    rig.up("a")
    rig.now += 10
    rig.die("a")
    rig.turn(10)
    assert rig.last_launch() == ("a", 2, None)


def test_suspect_is_told_until_an_incarnation_has_taken_it_over() -> None:
    rig = running("a")
    rig.die("a", busy=(0, 5))
    rig.die("a")  # before it has an epoch of its own: nobody can say whether it has counted the attempt
    rig.turn(10)
    rig.die("a")
    rig.turn(10)
    assert [suspect for _, _, suspect in rig.launches] == [None, (0, 5), (0, 5), (0, 5)]
    rig.up("a")
    rig.die("a")
    rig.turn(10)
    assert rig.last_launch()[2] is None


def test_worker_that_names_another_cause_blames_no_message() -> None:
    rig = running()
    rig.die("a", WorkerExit.JOURNAL_POISONED, busy=(3, 17))
    assert rig.seen(events.WorkerDied)[0].blamed is None
    assert rig.last_launch()[2] is None


def test_exit_code_0_in_the_middle_of_a_message_is_a_death_of_it() -> None:
    rig = running()
    rig.die("a", 0, busy=(3, 17))
    assert rig.seen(events.WorkerDied)[0].blamed == (3, 17)
    assert rig.last_launch()[2] == (3, 17)


# ------------------------------------------------------------------------------------------------------- what is left
def test_death_is_written_to_the_board() -> None:
    rig = running()
    rig.launch_fails = OSError("not now")  # so that it stays dead for a moment
    rig.now += 1
    rig.die("a", -signal.SIGSEGV, words="Fatal Python error: Segmentation fault\n")
    block = rig.board.block("a")
    assert rig.seen(events.WorkerDied)[0].reason == "killed by SIGSEGV: Fatal Python error: Segmentation fault"
    assert block.get(Field.RESTARTS) == 2
    assert block.get(Field.SUPERVISED_STATE) == block.get(Field.STATE) == WorkerState.DEAD
    assert block.get(Field.PID) == 0
    assert block.text(Text.LAST_WORDS) == ""
    assert block.text(Text.LAST_DEATH) == "could not be launched: OSError: not now"
    assert block.get(Field.LAST_DEATH_CODE) == WorkerExit.LAUNCH_FAILED


def test_last_death_keeps_signal_and_last_words() -> None:
    rig = running()
    rig.die("a", -signal.SIGSEGV, words="first line\nlast line\n")
    block = rig.board.block("a")
    assert block.text(Text.LAST_DEATH) == "killed by SIGSEGV: last line\nfirst line\nlast line"
    assert block.get(Field.LAST_DEATH_CODE) == -signal.SIGSEGV
    assert block.get(Field.LAST_DEATH_NS) == int(rig.now * 1e9)
    assert rig.board.block("b").text(Text.LAST_DEATH) == ""


def test_long_last_words_lose_their_beginning_but_never_the_reason() -> None:
    rig = running()
    rig.die("a", 1, words="é" * 3000 + "\nValueError: the end")
    text = rig.board.block("a").text(Text.LAST_DEATH)
    assert text.startswith("exit code 1 (CRASHED): an exception that nobody handled: ValueError: the end\n")
    assert text.endswith("é\nValueError: the end")
    assert "\ufffd" not in text


def test_clean_stop_does_not_hide_the_last_death() -> None:
    rig = running()
    rig.die("a", -signal.SIGSEGV)
    rig.up("a")
    drain(rig)
    rig.obey()
    assert rig.end() is ExitStatus.OK
    assert rig.board.block("a").text(Text.LAST_DEATH) == "killed by SIGSEGV"
    assert rig.board.block("a").get(Field.RESTARTS) == 1
    assert rig.board.block("a").get(Field.SUPERVISED_STATE) == WorkerState.STOPPED


# ------------------------------------------------------------------------------------------------------- giving up
def test_giving_up_on_one_worker_stops_the_others_and_ends_the_system() -> None:
    rig = running(policy=Policy(max_restarts=1, period=60))
    rig.die("a")
    rig.up("a")
    rig.die("a", -signal.SIGSEGV)
    assert rig.state() is WorkerState.STOPPING
    assert rig.board.block("a").get(Field.SUPERVISED_STATE) == WorkerState.GAVE_UP
    assert len(rig.launches) == 3
    rig.obey()
    assert rig.end() is ExitStatus.GAVE_UP
    why = "more than 1 restarts within 60 s (all together); the last death: killed by SIGSEGV"
    assert rig.supervisor.reason == f"gave up on worker 'a': {why}"
    assert rig.seen(events.WorkerGaveUp) == [events.WorkerGaveUp("a", why)]
    assert rig.seen(events.SystemStopped)[0].reason == rig.supervisor.reason
    assert rig.board.block("a").get(Field.SUPERVISED_STATE) == WorkerState.GAVE_UP


def test_refused_journal_ends_the_system_as_damaged() -> None:
    rig = running()
    rig.die("a", WorkerExit.JOURNAL_REFUSED, words="DamagedJournal: bad frame at offset 512")
    assert len(rig.launches) == 2
    rig.obey()
    assert rig.end() is ExitStatus.DAMAGED
    assert "bad frame at offset 512" in rig.supervisor.reason


def test_first_start_that_fails_ends_the_system_at_once() -> None:
    rig = Rig(ChildSpec("a"))
    rig.turn()
    rig.die("a", WorkerExit.START_FAILED, words="ValueError: no such file")
    assert rig.end() is ExitStatus.GAVE_UP
    assert "ValueError: no such file" in rig.supervisor.reason
    assert not rig.supervisor.wait_ready(0)


def test_full_disk_at_the_first_launch_is_told_as_such() -> None:
    rig = Rig(ChildSpec("a"))
    rig.launch_fails = OSError(errno.ENOSPC, "No space left on device")
    rig.turn()
    assert rig.end() is ExitStatus.NO_SPACE


def test_launch_that_fails_is_a_death_and_does_not_block_a_request_to_stop() -> None:
    rig = running(policy=Policy(max_restarts=10, period=60, backoff_step=0.5, jitter=0))
    rig.launch_fails = RuntimeError("no more processes")
    rig.die("a")
    rig.turn()
    assert [event.delay for event in rig.seen(events.WorkerRestarting)] == [0.0, 0.5, 1.0][: len(rig.launches) - 1]
    assert rig.seen(events.WorkerDied)[1].reason == "could not be launched: RuntimeError: no more processes"
    assert rig.seen(events.WorkerDied)[1].pid is None
    launches = len(rig.launches)
    rig.supervisor.request_stop_now()
    rig.turn(10)
    assert rig.state() is WorkerState.STOPPING
    assert len(rig.launches) == launches


def test_request_to_stop_is_looked_at_before_the_next_launch() -> None:
    rig = Rig(ChildSpec("a"), ChildSpec("b"))
    launch = rig.launch

    def request_meanwhile(name: str, epoch_floor: int, suspect: tuple[int, int] | None) -> FakeProcess:
        rig.supervisor.request_stop_now()
        return launch(name, epoch_floor, suspect)

    rig.supervisor._launch = request_meanwhile
    assert rig.turn() == 0.0
    rig.turn()
    assert [name for name, _, _ in rig.launches] == ["a"]


def test_launches_that_keep_failing_give_up() -> None:
    rig = running("a", policy=Policy(max_restarts=3, period=600))
    rig.launch_fails = RuntimeError("no more processes")
    rig.die("a")
    for _ in range(10):
        if rig.turn(10) is None:
            break
    assert rig.supervisor.status is ExitStatus.GAVE_UP
    assert len(rig.launches) == 4


def test_a_first_launch_that_fails_is_an_error_of_that_start() -> None:
    rig = Rig(ChildSpec("a"))
    rig.launch_fails = RuntimeError("no more processes")
    assert rig.turn() is None or rig.turn() is None
    assert rig.supervisor.status is ExitStatus.GAVE_UP
    assert "could not be launched: RuntimeError: no more processes" in rig.supervisor.reason
    assert len(rig.launches) == 1


def test_one_that_ends_by_itself_and_does_not_come_to_its_end_is_killed() -> None:
    rig = Rig(ChildSpec("a", shutdown=3.0), ChildSpec("b"))
    rig.turn()
    rig.up()
    block = rig.board.block("a")
    block.set(Field.STATE, WorkerState.STOPPING)
    rig.turn()
    rig.turn(2.0)
    block.set(Field.STATE, WorkerState.RUNNING)  # on_stop is done, and what it has sent waits to be taken
    rig.turn(2.0)
    assert rig.killed() == []
    block.set(Field.STATE, WorkerState.STOPPING)
    rig.turn()
    rig.turn(3.1)
    rig.turn()
    (died,) = rig.seen(events.WorkerDied)
    assert "it did not end within 3 s" in died.reason
    assert len(rig.launches) == 3
    assert rig.supervisor.status is None


def test_a_temporary_worker_that_died_makes_no_clean_end() -> None:
    rig = Rig(ChildSpec("a", Restart.TEMPORARY), ChildSpec("b"))
    rig.turn()
    rig.up()
    rig.die("a", -signal.SIGSEGV)
    drain(rig)
    rig.obey()
    assert rig.end() is ExitStatus.GAVE_UP
    assert rig.supervisor.reason == "worker 'a' died and is temporary: killed by SIGSEGV"


def test_a_drain_does_not_wait_for_a_worker_that_is_down_but_for_what_is_pending() -> None:
    recounted: list[str] = []
    rig = running("a", "b", recount=recounted.append)
    rig.launch_fails = RuntimeError("not now")
    rig.die("a")
    rig.quiet = False
    rig.supervisor.request_stop()
    rig.turn()
    rig.acknowledge("b")
    for _ in range(5):
        rig.turn(0.01)
    assert rig.state() is WorkerState.DRAINING
    assert "a" in recounted
    rig.quiet = True
    for _ in range(3):
        rig.turn(0.01)
    assert rig.state() is WorkerState.STOPPING


def test_what_a_worker_without_a_journal_takes_along_makes_no_clean_end() -> None:
    rig = running("a", "b")
    rig.board.block("a").set(Field.AT_RISK, 1)
    rig.die("a")
    rig.up("a")
    drain(rig)
    rig.obey()
    assert rig.end() is ExitStatus.FAILED
    assert rig.supervisor.reason == "worker 'a' took messages along that had found no room yet (level memory)"


# ------------------------------------------------------------------------------------------------------- child specs
def test_transient_worker_that_ends_normally_stays_away_but_is_restarted_after_a_crash() -> None:
    rig = Rig(ChildSpec("a", Restart.TRANSIENT), ChildSpec("b"))
    rig.turn()
    rig.up()
    rig.die("a")
    rig.up("a")
    rig.die("a", 0)
    rig.turn(100)
    assert len(rig.launches) == 3
    assert rig.board.block("a").get(Field.SUPERVISED_STATE) == WorkerState.STOPPED
    assert rig.seen(events.WorkerEnded) == [events.WorkerEnded("a", 103, "exit code 0")]
    assert rig.state() is WorkerState.RUNNING


@pytest.mark.parametrize(("quiet", "status"), [(True, ExitStatus.OK), (False, ExitStatus.NOT_DRAINED)])
def test_system_ends_when_every_worker_has_ended(quiet: bool, status: ExitStatus) -> None:
    rig = Rig(ChildSpec("a", Restart.TEMPORARY))
    rig.quiet = quiet
    rig.turn()
    rig.up()
    rig.die("a", 0)
    until(lambda: rig.turn() is None, "the end")
    assert rig.end() is status


# ------------------------------------------------------------------------------------------------------- hangs
def silent(rig: Rig, seconds: float, **cells: int) -> None:
    """The workers beat no more; turns go on."""
    for name in rig.board.names:
        rig.board.block(name).set(Field.HEARTBEAT_NS, int(rig.now * 1e9))
    for cell, value in cells.items():
        rig.board.block("a").set(Field[cell], value)
    for _ in range(int(seconds * 2)):
        rig.turn(0.5)


def test_a_silent_loop_is_killed_and_restarted_and_no_message_is_blamed() -> None:
    rig = Rig(ChildSpec("a", hung_after=3.0), ChildSpec("b", hung_after=1000.0))
    rig.turn()
    rig.up()
    silent(rig, 2.5)
    assert rig.killed() == []
    silent(rig, 5.0)
    assert rig.processes["b"].pid == 102
    (killed,) = rig.seen(events.WorkerKilled)
    assert (killed.name, killed.pid) == ("a", 101)
    assert "loop silent for 4.0 s outside of any handler" in killed.reason
    (died,) = rig.seen(events.WorkerDied)
    assert "loop silent" in died.reason
    assert "killed by SIGKILL" in died.reason
    assert died.blamed is None
    assert len(rig.launches) == 3


def test_a_stopped_process_is_killed_and_the_message_in_progress_is_innocent() -> None:
    rig = Rig(ChildSpec("a", hung_after=3.0))
    rig.turn()
    rig.up()
    rig.letter = "T"
    silent(rig, 6.0, BUSY_PEER=1, BUSY_SEQ=7, BUSY_HANDLER=1)
    (died,) = rig.seen(events.WorkerDied)
    assert "SIGSTOP" in died.reason
    assert died.blamed is None


def test_a_busy_handler_is_killed_at_its_limit_and_its_message_is_blamed() -> None:
    limits = {"a": Limits(1000.0, [("parse", 2.0)], ["gateway"])}
    rig = Rig(ChildSpec("a"), limits=limits)
    rig.turn()
    rig.up()
    silent(rig, 4.0, BUSY_PEER=1, BUSY_SEQ=7, BUSY_HANDLER=1, BUSY_SINCE_NS=int(rig.now * 1e9))
    (died,) = rig.seen(events.WorkerDied)
    assert "handler 'parse' busy for" in died.reason
    assert died.blamed == (0, 7)


# ------------------------------------------------------------------------------------------------------- drain, stop
def drain(rig: Rig) -> None:
    rig.supervisor.request_stop(drain=True)
    rig.turn()
    rig.acknowledge()
    rig.turn()
    rig.turn()
    assert rig.state() is WorkerState.STOPPING


def test_drain_waits_for_every_acknowledgement_and_two_quiet_looks_in_a_row() -> None:
    rig = running()
    rig.quiet = False
    rig.supervisor.request_stop(drain=True, reason="SIGTERM")
    rig.turn()
    assert rig.state() is WorkerState.DRAINING
    assert rig.seen(events.SystemDraining) == [events.SystemDraining("trades", "SIGTERM")]
    assert [rig.board.block(name).get(Field.CONTROL) for name in "ab"] == [Control.DRAIN] * 2
    rig.acknowledge()
    for quiet in (False, True, False, False, True):
        rig.quiet = quiet
        rig.turn(0.1)
        assert rig.state() is WorkerState.DRAINING
    rig.turn(0.1)
    assert rig.state() is WorkerState.STOPPING
    assert [rig.board.block(name).get(Field.CONTROL) for name in "ab"] == [Control.DRAIN, Control.STOP]
    assert len(rig.seen(events.SystemDrained)) == 1
    rig.obey()
    assert rig.end() is ExitStatus.OK
    assert rig.state() is WorkerState.STOPPED
    assert rig.board.get(BoardCell.SYSTEM_STATE) == WorkerState.STOPPED


def test_quiet_is_not_believed_before_everyone_has_acknowledged() -> None:
    rig = running()
    rig.supervisor.request_stop()
    rig.turn()
    rig.acknowledge("a")
    for _ in range(5):
        rig.turn(0.1)
    assert rig.state() is WorkerState.DRAINING
    assert rig.seen(events.SystemDrained) == []


def test_doorbells_are_rung_with_every_order() -> None:
    rig = running("a")
    bell = rig.board.block("a").doorbell
    for request in (rig.supervisor.request_stop, rig.supervisor.request_stop_now):
        bell.arm()
        request()
        rig.turn()
        assert bell.wait(60.0), "it is rung, and not over"


def test_worker_that_dies_while_draining_is_restarted_and_must_acknowledge_itself() -> None:
    rig = running()
    rig.supervisor.request_stop()
    rig.turn()
    rig.acknowledge()
    rig.die("a", busy=(1, 2))
    assert rig.last_launch() == ("a", 1, (1, 2))
    assert rig.board.block("a").get(Field.CONTROL) == Control.DRAIN
    for _ in range(3):
        rig.turn(0.1)
    assert rig.state() is WorkerState.DRAINING
    rig.up("a")
    for _ in range(3):
        rig.turn(0.1)
    assert rig.state() is WorkerState.DRAINING
    rig.acknowledge("a")
    rig.turn()
    rig.turn()
    assert rig.state() is WorkerState.STOPPING
    rig.obey()
    assert rig.end() is ExitStatus.OK


def test_drain_is_cut_short_at_its_deadline() -> None:
    rig = running(drain_timeout=3.0)
    rig.supervisor.request_stop()
    rig.turn()
    rig.acknowledge("a")
    rig.turn(2.9)
    assert rig.state() is WorkerState.DRAINING
    rig.turn(0.2)
    assert rig.state() is WorkerState.STOPPING
    rig.obey()
    assert rig.end() is ExitStatus.NOT_DRAINED
    assert rig.supervisor.reason == "not everything was handled within 3 s; not reached: b"


def test_worker_may_ask_for_the_end() -> None:
    rig = running()
    rig.board.block("b").set(Field.STOP_REQUESTED, 1)
    rig.turn()
    assert rig.state() is WorkerState.DRAINING
    assert rig.seen(events.SystemDraining) == [events.SystemDraining("trades", "worker 'b' asked for it")]
    rig.turn()
    assert len(rig.seen(events.SystemDraining)) == 1


def test_second_drain_request_changes_nothing() -> None:
    rig = running()
    drain(rig)
    rig.supervisor.request_stop()
    rig.turn()
    rig.obey()
    assert rig.end() is ExitStatus.OK


def test_request_to_stop_now_cuts_a_drain_short() -> None:
    rig = running(stop_now_timeout=1.0)
    rig.supervisor.request_stop()
    rig.turn()
    rig.supervisor.request_stop_now(reason="second SIGINT")
    rig.turn()
    assert rig.state() is WorkerState.STOPPING
    rig.turn(0.9)
    assert rig.killed() == []
    rig.turn(0.2)
    assert rig.killed() == ["a", "b"]
    rig.turn()
    assert rig.end() is ExitStatus.NOT_DRAINED
    assert rig.supervisor.reason == "stopped before everything was handled: second SIGINT"


def test_stop_without_drain_gives_workers_their_time() -> None:
    rig = running()
    rig.supervisor.request_stop(drain=False)
    rig.turn()
    assert rig.state() is WorkerState.STOPPING
    rig.turn(4.9)
    assert rig.killed() == []
    rig.obey()
    assert rig.end() is ExitStatus.NOT_DRAINED


def test_nobody_is_started_any_more_when_the_system_stops() -> None:
    rig = running()
    rig.supervisor.request_stop(drain=False)
    rig.turn()
    rig.die("a", -signal.SIGSEGV, busy=(0, 1))
    rig.turn(100)
    assert len(rig.launches) == 2


def test_restart_that_was_due_is_forgotten_when_the_system_stops() -> None:
    rig = running()
    rig.die("a")
    rig.up("a")
    rig.die("a")  # so that the next start is due in half a second
    rig.supervisor.request_stop(drain=False)
    rig.turn()
    assert rig.turn(1.0) == supervisor.TICK
    assert len(rig.launches) == 3


def test_worker_that_does_not_stop_in_time_is_killed_and_that_is_no_clean_end() -> None:
    rig = running()
    drain(rig)
    rig.processes["b"].code = 0
    rig.turn()
    rig.turn(4.9)
    assert rig.seen(events.WorkerKilled) == []
    rig.turn(0.2)
    assert rig.seen(events.WorkerKilled) == [events.WorkerKilled("a", 101, "it did not end within 5 s")]
    assert rig.end() is ExitStatus.FAILED
    assert rig.supervisor.reason == "worker 'a' was killed: it did not end within 5 s"


def test_worker_that_fails_while_stopping_makes_no_clean_end() -> None:
    rig = running()
    drain(rig)
    rig.processes["a"].code = WorkerExit.HANDLER_FAILED
    rig.processes["b"].code = 0
    assert rig.end() is ExitStatus.FAILED
    assert "worker 'a' did not stop cleanly: exit code 68 (HANDLER_FAILED)" in rig.supervisor.reason


def test_request_to_stop_now_shortens_the_grace_of_a_clean_end() -> None:
    rig = Rig(ChildSpec("a", shutdown=60.0), ChildSpec("b", shutdown=60.0), stop_now_timeout=1.0)
    rig.turn()
    rig.up()
    drain(rig)
    rig.supervisor.request_stop_now()
    rig.turn()
    rig.turn(1.1)
    assert rig.killed() == ["a", "b"]


def test_process_that_survives_sigkill_is_an_error_and_not_taken_for_dead() -> None:
    rig = running(stop_now_timeout=1.0)
    rig.processes["a"].stubborn = True
    rig.supervisor.request_stop_now()
    rig.turn()
    rig.turn(1.1)
    assert rig.turn(supervisor.UNKILLABLE - 1) is not None
    with pytest.raises(RuntimeError, match="still not dead 10 s after SIGKILL: 'a'"):
        rig.turn(1.1)


def test_requests_before_the_start_are_not_forgotten() -> None:
    rig = Rig(ChildSpec("a"))
    rig.supervisor.request_stop_now()
    rig.turn()
    assert rig.launches == []
    assert rig.end() is ExitStatus.NOT_DRAINED
    rig.supervisor.request_stop_now()  # after the end: nothing


# ------------------------------------------------------------------------------------------------------- for real
@pytest.fixture(scope="module")
def forkserver() -> Iterator[None]:
    stop_forkserver()
    start_forkserver(("tests.actors.targets", "bus"))
    yield
    stop_forkserver()


class System:
    """Real workers under a supervisor in a thread of its own."""

    def __init__(self, stop_now_timeout: float = 30.0, **behaviours: str) -> None:
        """Whoever listens ends well before its time is over, however slow the machine is."""
        names = list(behaviours)
        self.segment = Segment.create(f"ringleader-test{secrets.token_hex(4)}", Board.size(names))
        self.board = Board.format(self.segment.buf, names)
        self.behaviours = behaviours
        self.queue: queue.Queue[tuple[float, events.Event]] = queue.Queue()
        self.quiet: Callable[[], bool] = lambda: True
        self.pids: list[int] = []
        self.status: ExitStatus | None = None
        self.supervisor = Supervisor(
            "trades",
            [ChildSpec(name, shutdown=30.0) for name in names],
            Policy(max_restarts=10, backoff_step=0.0),
            self.board,
            self.launch,
            quiet=lambda: self.quiet(),
            observer=lambda event: self.queue.put((time.monotonic(), event)),
            stop_now_timeout=stop_now_timeout,
        )
        self.thread = threading.Thread(target=self.supervise)
        self.thread.start()

    def launch(self, name: str, epoch_floor: int, suspect: tuple[int, int] | None) -> WorkerProcess:
        args = (self.segment.name, name, epoch_floor, self.behaviours[name])
        process = WorkerProcess.start(targets.works, args, f"ringleader: trades/{name}")
        self.pids.append(process.pid)
        return process

    def supervise(self) -> None:
        self.status = self.supervisor.run()

    def wait_for(self, kind: type[E], seconds: float = 60.0) -> tuple[float, E]:
        while True:
            when, event = self.queue.get(timeout=seconds)
            if isinstance(event, kind):
                return when, event

    def ended(self, seconds: float = 60.0) -> ExitStatus | None:
        self.thread.join(seconds)
        assert not self.thread.is_alive()
        dead_within(self.pids, 0.5)
        return self.status

    def close(self) -> None:
        self.supervisor.request_stop_now()
        self.thread.join()
        self.board.close()
        self.segment.close()
        self.segment.unlink()


@pytest.fixture
def start(forkserver: None) -> Iterator[Callable[..., System]]:
    systems: list[System] = []

    def make(**behaviours: Any) -> System:
        systems.append(System(**behaviours))
        assert systems[-1].supervisor.wait_ready(60)
        return systems[-1]

    yield make
    for system in systems:
        system.close()


def test_real_workers_are_drained_and_stopped(start) -> None:
    system = start(a="obeys", b="obeys")
    system.supervisor.request_stop()
    assert system.ended() is ExitStatus.OK
    assert system.board.block("a").get(Field.STATE) == WorkerState.STOPPED


def seconds_of_a_process() -> float:
    """From its start to its end."""
    begun = time.monotonic()
    with contextlib.closing(WorkerProcess.start(targets.returns, (0,))) as process:
        assert select.select([process.pidfd], [], [], 60)[0]
        return time.monotonic() - begun


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_real_worker_is_up_again_soon_after_a_signal_killed_it(start, number: signal.Signals) -> None:
    system = start(a="obeys", b="obeys")
    victim = system.board.block("a").get(Field.PID)
    took, least = [], []
    for _ in range(5):
        least.append(seconds_of_a_process())
        victim = system.board.block("a").get(Field.PID)
        killed = time.monotonic()
        os.kill(victim, number)
        _, died = system.wait_for(events.WorkerDied)
        assert died.pid == victim
        assert died.reason.startswith(f"killed by {number.name}")
        took.append(system.wait_for(events.WorkerReady)[0] - killed)
    print(f"up again after {', '.join(f'{one * 1000:.1f}' for one in took)} ms, at least {min(least) * 1000:.1f}")
    assert min(took) < 0.05 + 5 * min(least), "nobody waits for anything, but for the process to be made"
    assert system.board.block("a").get(Field.RESTARTS) == 5
    system.supervisor.request_stop()
    assert system.ended() is ExitStatus.OK


def test_real_worker_that_is_stopped_is_not_taken_for_dead(start) -> None:
    system = start(a="obeys", stop_now_timeout=0.2)
    (pid,) = system.pids
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the worker to be stopped")
    system.supervisor.request_stop_now()
    assert system.ended() is ExitStatus.NOT_DRAINED
    assert system.pids == [pid]


def test_real_worker_that_does_not_listen_is_killed(start) -> None:
    system = start(a="obeys", b="deaf", stop_now_timeout=0.2)
    system.supervisor.request_stop_now()
    while system.wait_for(events.WorkerKilled)[1].name != "b":
        pass  # so is the other one, where the machine does not let it end in so short a time
    assert system.ended() is ExitStatus.NOT_DRAINED


def test_real_worker_asks_for_the_end(start) -> None:
    system = start(a="obeys", b="asks for stop")
    assert system.ended() is ExitStatus.OK


def test_real_worker_that_fails_at_the_end(start) -> None:
    system = start(a="fails at the end", b="obeys")
    system.supervisor.request_stop()
    assert system.ended() is ExitStatus.FAILED


def test_real_first_start_that_fails(forkserver: None) -> None:
    system = System(a="cannot start", b="obeys")
    try:
        started = time.monotonic()
        assert not system.supervisor.wait_ready(100)
        assert time.monotonic() - started < 60
        assert system.ended() is ExitStatus.GAVE_UP
        assert "ValueError: no such file" in system.supervisor.reason
    finally:
        system.close()


def test_request_from_a_signal_handler_wakes_the_supervisor(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK", 60.0)
    system = start(a="obeys")
    before = signal.signal(signal.SIGUSR1, lambda *_: system.supervisor.request_stop())
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert system.ended(30) is ExitStatus.OK


def test_death_wakes_the_supervisor(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK", 60.0)
    system = start(a="obeys")
    os.kill(system.pids[0], signal.SIGKILL)
    system.wait_for(events.WorkerDied, 30)
    system.wait_for(events.WorkerReady, 30)


def test_failure_of_the_supervisor_itself_leaves_no_worker(start, caplog: pytest.LogCaptureFixture) -> None:
    system = start(a="obeys", b="deaf")

    def fails() -> bool:
        raise ZeroDivisionError("in quiet")

    system.quiet = fails
    system.behaviours["b"] = "obeys"
    os.kill(system.pids[1], signal.SIGKILL)
    system.wait_for(events.WorkerDied)
    system.wait_for(events.WorkerReady)
    system.supervisor.request_stop()
    assert system.ended() is ExitStatus.FAILED
    assert system.supervisor.reason == "the supervisor failed: ZeroDivisionError: in quiet"
    _, stopped = system.wait_for(events.SystemStopped)
    assert stopped.exit_status is ExitStatus.FAILED
    assert "the supervisor of system 'trades' failed" in caplog.text


def test_restarts_leave_no_descriptor_behind(start) -> None:
    system = start(a="obeys")

    def restart() -> None:
        block = system.board.block("a")
        restarts = block.get(Field.RESTARTS)
        os.kill(block.get(Field.PID), signal.SIGKILL)
        until(lambda: block.get(Field.RESTARTS) > restarts, "its death to be seen")
        until(lambda: block.get(Field.SUPERVISED_STATE) == WorkerState.RUNNING, "it to be up again")

    def count() -> int:
        """The supervisor opens and closes files of its own all the time."""
        return min(len(os.listdir("/proc/self/fd")) for _ in range(50))

    restart()
    gc.collect()  # what the tests before have left would be let go of at any moment, with its descriptors
    before = count()
    for _ in range(8):
        restart()
    assert count() == before
    system.supervisor.request_stop()
    assert system.ended() is ExitStatus.OK
