"""What the status tells of a system, in every condition a system can be in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from actors.dead_letters import collect
from actors.exits import ExitStatus
from actors.identity import WorkerEnd, stale_prefix
from actors.plan import GATEWAY
from actors.rundir import RunDirectory
from actors.status import list_status, locate, read_process, read_status, readings, with_rates
from actors.status_types import (
    Condition,
    Ended,
    Health,
    ProcessStatus,
    SystemStatus,
    WorkerStatus,
    to_json,
)
from actors.status_words import duration, first_line, size
from bus import BoardCell, Text, WorkerState

from .faked import CAPACITY, SECOND, FakeSystem, ended_process, process, send

NOBODY = 65534
ROOT = Path(__file__).parents[2]

Fake = Callable[..., FakeSystem]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def fake(home: Path) -> Iterator[Fake]:
    made: list[FakeSystem] = []

    def make(name: str = "trades", **options: object) -> FakeSystem:
        made.append(FakeSystem(home, name, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for system in made:
        system.unlink()


# ------------------------------------------------------------------------------------------------------- what is read
def test_a_running_system_is_shown_with_its_workers_and_edges(fake: Fake, home: Path) -> None:
    system = fake()
    status = read_status("trades", home=home)
    assert (status.condition, status.state, status.summary) == (Condition.RUNNING, "running", "running")
    assert (status.name, status.directory, status.level) == ("trades", str(system.path), "process")
    assert [worker.name for worker in status.workers] == ["ingest", "stats"]
    assert [(edge.source, edge.target) for edge in status.edges] == [
        ("gateway", "ingest"),
        ("gateway", "stats"),
        ("ingest", "stats"),
    ]
    assert status.supervisor is not None
    assert (status.supervisor.pid, status.supervisor.health) == (os.getpid(), Health.OK)
    assert status.notes == ()


def test_a_worker_is_shown_as_its_cells_and_its_process_say(fake: Fake) -> None:
    system = fake()
    system.fill("stats", EPOCH=7, RESTARTS=6, HANDLED=1000, SENT=500, COMMITS=40, DEAD_LETTERS=2, ROLLBACKS=3)
    system.fill("stats", DUPLICATES=4, OUTBOX_BYTES=99, JOURNAL_BYTES=5000, JOURNAL_SEGMENTS=3, RING_IMPLEMENTATION=1)
    system.fill("stats", CARRIED=12, CARRIED_ACK=10, LAST_COMMIT_NS=time.monotonic_ns() - SECOND)
    worker = read_status(system.path).worker("stats")
    assert (worker.pid, worker.state, worker.health) == (os.getpid(), "running", Health.OK)
    assert (worker.epoch, worker.restarts, worker.handlers) == (7, 6, ("stats_first", "stats_second"))
    assert (worker.handled_messages, worker.sent_messages, worker.commits) == (1000, 500, 40)
    assert (worker.dead_letters, worker.rollbacks, worker.duplicate_messages) == (2, 3, 4)
    assert (worker.outbox_bytes, worker.carried_over_messages, worker.ring_implementation) == (99, 2, "c")
    assert worker.uptime_seconds == pytest.approx(0.5, abs=5)
    assert worker.journal is not None
    assert (worker.journal.level, worker.journal.bytes, worker.journal.segments) == ("process", 5000, 3)
    assert worker.journal.last_commit_age_seconds == pytest.approx(1, abs=5)
    assert worker.process is not None
    assert (worker.process.rss_bytes or 0) > 1_000_000
    assert (worker.process.threads or 0) >= 1
    assert worker.process.open_files == pytest.approx(len(os.listdir("/proc/self/fd")), abs=5)
    assert worker.process.cpu_percent > 0


def test_a_backlog_is_what_is_committed_and_not_acknowledged(fake: Fake) -> None:
    system = fake()
    oldest = time.monotonic_ns() - 3 * SECOND
    system.edge("ingest", "stats", COMMITTED=1000, PUBLISHED=700, ACK=400, OUTBOX_BYTES=50_000, OLDEST_NS=oldest)
    system.edge("ingest", "stats", HEAD=8192, TAIL=8192 + 1024, STARVED=1, RESEND_ASKED=2)
    edge = read_status(system.path).edge("ingest", "stats")
    assert (edge.committed, edge.published, edge.acknowledged, edge.backlog_messages) == (1000, 700, 400, 600)
    assert (edge.outbox_bytes, edge.ring_used_bytes, edge.backlog_bytes) == (50_000, 1024, 51_024)
    assert (edge.ring_capacity_bytes, edge.ring_fill_percent) == (CAPACITY, 25.0)
    assert edge.oldest_age_seconds == pytest.approx(3, abs=5)
    assert (edge.waiting_for_room, edge.resends_asked) == (True, 2)


def test_an_edge_without_backlog_has_no_oldest_message(fake: Fake) -> None:
    system = fake()
    system.edge("ingest", "stats", COMMITTED=10, ACK=10, OLDEST_NS=time.monotonic_ns())
    edge = read_status(system.path).edge("ingest", "stats")
    assert (edge.backlog_messages, edge.oldest_age_seconds) == (0, None)


def test_the_message_in_progress_is_named_by_peer_number_and_handler(fake: Fake) -> None:
    system = fake()
    since = time.monotonic_ns() - 2 * SECOND
    system.fill("stats", BUSY_PEER=2, BUSY_SEQ=41, BUSY_SINCE_NS=since, BUSY_HANDLER=2)
    busy = read_status(system.path).worker("stats").in_progress
    assert busy is not None
    assert (busy.id, busy.peer, busy.seq, busy.handler) == ("ingest/41", "ingest", 41, "stats_second")
    assert busy.since_seconds == pytest.approx(2, abs=5)
    assert read_status(system.path).worker("ingest").in_progress is None


@pytest.mark.parametrize(
    ("ordered", "meanwhile"), [(1, "nothing else is handled meanwhile"), (0, "what comes from ingest waits")]
)
def test_a_message_that_waits_for_its_next_attempt_is_told(fake: Fake, ordered: int, meanwhile: str) -> None:
    system = fake()
    due = time.monotonic_ns() + 3000 * SECOND + SECOND // 2
    system.fill("stats", RETRY_PEER=2, RETRY_SEQ=41, RETRY_ATTEMPTS=5, RETRY_AT_NS=due, RETRY_ORDERED=ordered)
    status = read_status(system.path)
    retry = status.worker("stats").retry
    assert retry is not None
    assert (retry.id, retry.peer, retry.seq, retry.attempts, retry.ordered) == ("ingest/41", "ingest", 41, 5, ordered)
    assert retry.next_in_seconds == pytest.approx(3000, abs=5)
    (note,) = status.notes
    assert note.startswith("worker stats waits ")
    assert note.endswith(f" for the next attempt at message ingest/41 (failed 5 times); {meanwhile}")
    assert status.worker("ingest").retry is None


def test_a_wait_for_the_next_attempt_that_is_over_is_not_below_zero(fake: Fake) -> None:
    system = fake()
    system.fill("stats", RETRY_PEER=1, RETRY_SEQ=2, RETRY_ATTEMPTS=1, RETRY_AT_NS=1, RETRY_ORDERED=1)
    assert read_status(system.path).notes == (
        "worker stats waits 0.0 s for the next attempt at message gateway/2 (failed 1 time); "
        "nothing else is handled meanwhile",
    )


def test_level_memory_has_no_journal(fake: Fake) -> None:
    assert read_status(fake(level="memory").path).worker("stats").journal is None


def test_the_gateway_is_shown_apart_from_the_workers(fake: Fake) -> None:
    system = fake()
    system.fill(GATEWAY, SENT=5)
    status = read_status(system.path)
    assert status.gateway is not None
    assert (status.gateway.sent_messages, status.gateway.health, status.gateway.process) == (5, Health.OK, None)


def test_alarms_tell_of_gaps_multiplying_cycles_and_full_outboxes(fake: Fake) -> None:
    system = fake()
    system.fill("ingest", GAPS=2)
    system.fill(GATEWAY, GAPS=1)
    system.fill("stats", MULTIPLYING=1, DISK_FULL=1, OVER_LIMIT=1, OUTBOX_BYTES=5 << 20)
    status = read_status(system.path)
    assert [(alarm.kind, alarm.worker) for alarm in status.alarms] == [
        ("gaps", "ingest"),
        ("multiplying", "stats"),
        ("disk-full", "stats"),
        ("over-limit", "stats"),
        ("gaps", "gateway"),
    ]
    assert status.notes[0] == "ALARM: worker ingest saw 2 gaps in the messages it got and asked for them again"
    assert "5.0 MiB wait" in status.notes[3]
    assert status.summary == "running, 5 alarms"


def test_dead_letters_are_counted_over_all_workers(fake: Fake) -> None:
    system = fake()
    system.fill("ingest", DEAD_LETTERS=1)
    system.fill("stats", DEAD_LETTERS=2)
    status = read_status(system.path)
    assert status.dead_letters == 3
    assert "3 dead letters: `ringleader dead-letters list trades`" in status.notes


def test_the_last_death_is_told_with_its_reason_in_one_line(fake: Fake) -> None:
    system = fake()
    system.fill("stats", RESTARTS=2, LAST_DEATH_NS=time.monotonic_ns() - 4 * SECOND)
    system.block("stats").set_text(Text.LAST_DEATH, "exit code 1\nTraceback: ...\nValueError: no \x1b[31mprice\n")
    status = read_status(system.path)
    assert status.worker("stats").last_death == "exit code 1: ValueError: no ?[31mprice"
    assert status.worker("stats").last_death_age_seconds == pytest.approx(4, abs=5)
    assert re.match(r"worker stats: 2 restarts; last death [4-9]", status.notes[0])
    assert status.notes[0].endswith("s ago: exit code 1: ValueError: no ?[31mprice")


def test_reading_changes_nothing(fake: Fake) -> None:
    system = fake()
    system.block("stats").doorbell.arm()
    files = sorted(path.name for path in system.path.iterdir())
    before = [bytes(segment.buf) for segment in system.segments]
    for _ in range(3):
        read_status(system.path)
    assert [bytes(segment.buf) for segment in system.segments] == before
    assert sorted(path.name for path in system.path.iterdir()) == files


def test_reading_in_the_supervisors_own_process_leaves_its_lock_alone(fake: Fake) -> None:
    system = fake()
    with RunDirectory.open(system.path) as directory:
        directory.lock()
        read_status(system.path)
        list_status(system.path.parent)
        collect(system.path)
        code = "import sys, pathlib, actors.rundir as it; it.RunDirectory.open(pathlib.Path(sys.argv[1])).lock()"
        other = subprocess.run(
            [sys.executable, "-c", code, str(system.path)],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert f"held by another supervisor, process {os.getpid()}" in other.stderr


# ------------------------------------------------------------------------------------------------------- who is well
def test_a_stopped_worker_is_told_from_a_hung_one(fake: Fake) -> None:
    system = fake()
    with process() as child:
        system.runs("stats", child.pid)
        system.fill("stats", HEARTBEAT_NS=1, STARTED_NS=0, BUSY_PEER=2, BUSY_SEQ=3, BUSY_HANDLER=1)
        send(child.pid, signal.SIGSTOP)
        status = read_status(system.path)
        assert status.worker("stats").health is Health.STOPPED
        assert status.summary == "running, 1 worker stopped"
        who = f"worker stats (process {child.pid}) is stopped (SIGSTOP)"
        assert status.notes[0].startswith(f"{who}: it handles nothing until `kill -CONT {child.pid}`; in progress for")
        assert status.notes[0].endswith("message ingest/3 in handler stats_first")
        send(child.pid, signal.SIGCONT)
        assert read_status(system.path).worker("stats").health is Health.HUNG
        system.runs("stats", child.pid)
        assert read_status(system.path).worker("stats").health is Health.OK


def test_a_worker_without_heartbeat_is_hung_and_its_message_is_named(fake: Fake) -> None:
    system = fake()
    with process() as child:
        system.runs("stats", child.pid)
        before = time.monotonic_ns() - 60 * SECOND
        system.fill("stats", HEARTBEAT_NS=before, BUSY_PEER=2, BUSY_SEQ=9, BUSY_SINCE_NS=before, BUSY_HANDLER=1)
        system.fill("stats", STARTED_NS=0)
        status = read_status(system.path)
        assert status.worker("stats").health is Health.HUNG
        assert status.worker("stats").heartbeat_age_seconds == pytest.approx(60, abs=5)
        assert status.summary == "running, 1 worker hung"
        assert status.notes[0].startswith(
            f"worker stats (process {child.pid}) hangs, or takes long: no heartbeat for 1 min"
        )
        assert status.notes[0].endswith("s: message ingest/9 in handler stats_first")
        assert status.condition.exit_code == 0


def test_a_worker_that_hangs_without_a_message_says_what_it_was_doing(fake: Fake) -> None:
    system = fake()
    system.fill("stats", STATE=WorkerState.STARTING, HEARTBEAT_NS=time.monotonic_ns() - SECOND)
    note = read_status(system.path, hung_after=0).notes[-1]
    assert note.endswith("it is starting and handles no message")


def test_a_worker_whose_process_is_gone_is_told(fake: Fake) -> None:
    system = fake()
    system.fill("stats", PID=ended_process())
    status = read_status(system.path)
    worker = status.worker("stats")
    assert (worker.health, worker.process, worker.state) == (Health.GONE, None, "running")
    assert status.summary == "running, 1 worker gone"


def test_a_process_that_only_got_the_same_number_is_not_taken_for_the_worker(fake: Fake) -> None:
    system = fake()
    with process() as child:
        system.runs("stats", child.pid)
        system.fill("stats", STARTED_NS=1)  # long before that process was started
        assert read_status(system.path).worker("stats").health is Health.GONE


def test_a_zombie_is_no_process() -> None:
    with process("pass") as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert read_process(child.pid) is None


def test_a_dead_worker_between_two_incarnations_is_down(fake: Fake) -> None:
    system = fake()
    system.fill("stats", PID=0, STATE=WorkerState.DEAD)
    status = read_status(system.path)
    assert status.worker("stats").health is Health.DOWN
    assert status.worker("stats").uptime_seconds is None
    assert status.summary == "running, 1 worker dead"


def test_a_stopped_supervisor_is_told_and_its_workers_are_shown_all_the_same(home: Path) -> None:
    with process() as child:
        system = FakeSystem(home, pid=child.pid)
        try:
            system.fill("stats", HANDLED=17)
            send(child.pid, signal.SIGSTOP)
            status = read_status(system.path)
            assert (status.condition, status.summary) == (Condition.RUNNING, "running, supervisor stopped")
            assert status.supervisor is not None
            assert status.supervisor.health is Health.STOPPED
            assert status.notes[0].startswith(
                f"the supervisor (process {child.pid}) is stopped (SIGSTOP): the workers go on"
            )
            assert status.worker("stats").handled_messages == 17
        finally:
            system.unlink()


def test_a_hung_supervisor_is_told(fake: Fake) -> None:
    system = fake()
    system.board.set(BoardCell.SUPERVISOR_HEARTBEAT_NS, time.monotonic_ns() - 30 * SECOND)
    status = read_status(system.path)
    assert status.summary == "running, supervisor hung"
    assert re.match(rf"the supervisor \(process {os.getpid()}\) hangs: no heartbeat for 3\d s", status.notes[0])


def test_a_hung_gateway_is_told(fake: Fake) -> None:
    system = fake()
    system.fill(GATEWAY, HEARTBEAT_NS=time.monotonic_ns() - 30 * SECOND, STARTED_NS=0)
    assert re.match(r"the gateway hangs: no heartbeat for 3\d s", read_status(system.path).notes[0])


@pytest.mark.parametrize("state", ["STARTING", "DRAINING", "STOPPING"])
def test_what_a_system_does_other_than_running_is_in_its_summary(fake: Fake, state: str) -> None:
    system = fake()
    system.board.set(BoardCell.SYSTEM_STATE, WorkerState[state])
    status = read_status(system.path)
    assert (status.state, status.summary) == (state.lower(), state.lower())


# ------------------------------------------------------------------------------------------------------- not running
def test_a_dead_system_with_leftovers_tells_of_them_and_of_the_last_deaths(home: Path) -> None:
    with process() as child:
        system = FakeSystem(home, pid=child.pid)
    try:
        system.fill("stats", PID=ended_process(), RESTARTS=3, HANDLED=5)
        system.fill("ingest", PID=ended_process())
        system.block("stats").set_text(Text.LAST_DEATH, "killed by SIGKILL")
        status = read_status(system.path)
        assert status.condition is Condition.DEAD
        assert status.summary.startswith(f"dead: its supervisor, process {child.pid}, is gone (killed, most likely")
        assert "4 shared-memory segments left over, which the next start removes" in status.summary
        assert len(status.leftovers) == 4
        assert all(name.startswith(stale_prefix(system.identity)) for name in status.leftovers)
        assert status.worker("stats").handled_messages == 5
        assert status.notes == ("worker stats: 3 restarts; last death: killed by SIGKILL",)
    finally:
        system.unlink()


def test_a_worker_that_outlived_its_system_is_told(home: Path) -> None:
    system = FakeSystem(home, pid=ended_process())
    try:
        assert f"worker stats (process {os.getpid()}) is still alive" in read_status(system.path).notes
    finally:
        system.unlink()


def test_a_dead_system_without_leftovers_says_what_waits(home: Path) -> None:
    system = FakeSystem(home, pid=ended_process(), shared_memory=False)
    journal = system.path / "journals" / "stats"
    journal.mkdir(parents=True)
    (journal / "segment").write_bytes(bytes(1234))
    status = read_status(system.path)
    assert (status.condition, status.leftovers, status.workers) == (Condition.DEAD, (), ())
    assert status.summary.endswith("nothing is left over; what was pending waits in the journals")
    assert status.journal_bytes_on_disk == 1234


def test_a_dead_system_of_level_memory_has_nothing_waiting(home: Path) -> None:
    system = FakeSystem(home, pid=ended_process(), shared_memory=False, level="memory")
    assert read_status(system.path).summary.endswith("what was pending is lost (level memory)")


def test_a_system_from_before_the_machine_was_restarted_is_dead(fake: Fake) -> None:
    system = fake()
    system.unlink()
    with RunDirectory.open(system.path) as directory:
        directory.write_identity(msgspec.structs.replace(system.identity, boot_id="another"))
    status = read_status(system.path)
    assert status.condition is Condition.DEAD
    assert "the machine has been restarted since" in status.summary


def test_a_stopped_system_says_how_it_ended(fake: Fake) -> None:
    system = fake()
    system.unlink()
    system.end(
        3,
        "more than 5 restarts\nmore",
        workers={"stats": WorkerEnd(6, "killed by SIGSEGV\n"), "x": WorkerEnd(0, "", dead_letters=2)},
    )
    status = read_status(system.path)
    assert (status.condition, status.condition.exit_code) == (Condition.STOPPED, 3)
    assert f"ago with status 3 (GAVE_UP, {ExitStatus.GAVE_UP.meaning})" in status.summary
    assert status.summary.endswith(": more than 5 restarts")
    assert status.ended is not None
    assert (status.ended.status, status.ended.name) == (3, "GAVE_UP")
    assert status.ended.last_deaths == {"stats": "killed by SIGSEGV"}
    assert status.notes == (
        "worker stats: 1 death; last death: killed by SIGSEGV",
        "2 dead letters at the end, on x: see `ringleader dead-letters list`",
    )


def test_how_an_earlier_run_ended_says_nothing_about_this_one(fake: Fake) -> None:
    system = fake()
    system.end(0, "", run_id="00000000")
    assert read_status(system.path).condition is Condition.RUNNING


def test_a_process_without_shared_memory_is_not_called_running(fake: Fake) -> None:
    system = fake()
    system.unlink()
    status = read_status(system.path)
    assert (status.condition, status.condition.exit_code) == (Condition.STARTING, 3)
    assert f"its process {os.getpid()} is alive, but its shared memory is not there" in status.summary


def test_an_unknown_system_is_told_where_it_was_looked_for_and_what_was_meant(fake: Fake, home: Path) -> None:
    fake("trades")
    fake("weather")
    status = read_status("trade", home=home)
    assert (status.condition, status.condition.exit_code) == (Condition.UNKNOWN, 4)
    assert status.close_matches == ("trades",)
    assert status.summary == (
        f"unknown system 'trade': there is no run directory at {home / 'trade'}; did you mean trades?"
    )
    assert read_status("zzz", home=home).summary.endswith(f"; {home} has trades, weather")
    assert read_status("zzz", home=home / "none").summary.endswith(f"; {home / 'none'} has no systems")


def test_a_directory_without_an_identity_is_no_system(home: Path) -> None:
    RunDirectory.open(home / "trades").close()
    status = read_status("trades", home=home)
    assert status.condition is Condition.UNKNOWN
    assert "the directory holds no system (no identity.json)" in status.summary


def test_a_damaged_identity_is_unreadable_not_unknown(fake: Fake) -> None:
    system = fake()
    (system.path / "identity.json").write_text("{")
    status = read_status(system.path)
    assert (status.condition, status.condition.exit_code) == (Condition.UNREADABLE, 1)
    assert "is damaged" in status.summary


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_system_of_another_user_is_told_to_root_too(fake: Fake) -> None:
    system = fake()
    os.chown(system.path, NOBODY, NOBODY)
    status = read_status(system.path)
    assert (status.condition, status.condition.exit_code) == (Condition.NOT_YOURS, 5)
    assert f"(uid {NOBODY}); you are root (uid 0)" in status.summary


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("by", ["path", "name"])
def test_a_system_of_root_is_told_to_another_user(fake: Fake, home: Path, by: str) -> None:
    system = fake()
    os.seteuid(NOBODY)
    try:
        status = read_status(system.path) if by == "path" else read_status("trades", home=home)
    finally:
        os.seteuid(0)
    assert status.condition is Condition.NOT_YOURS
    assert "belongs to another user, root (uid 0); you are " in status.summary


# ------------------------------------------------------------------------------------------------------- not trusted
def test_numbers_that_cannot_be_are_shown_and_never_followed(fake: Fake) -> None:
    system = fake()
    huge = 2**64 - 1
    system.fill("stats", STATE=99, BUSY_PEER=1000, BUSY_SEQ=huge, BUSY_HANDLER=huge, PID=huge, STARTED_NS=huge)
    system.fill("ingest", HANDLED=huge, HEARTBEAT_NS=huge, CARRIED_ACK=huge)
    system.edge("ingest", "stats", HEAD=huge, TAIL=5, ACK=huge, COMMITTED=5, OLDEST_NS=huge)
    system.edge("gateway", "stats", HEAD=0, TAIL=huge)
    system.board.set(BoardCell.SYSTEM_STATE, 77)
    status = read_status(system.path)
    worker = status.worker("stats")
    assert (worker.state, worker.process, status.state) == ("unknown (99)", None, "unknown (77)")
    assert worker.in_progress is not None
    assert (worker.in_progress.peer, worker.in_progress.handler) == ("?", "?")
    edge = status.edge("ingest", "stats")
    assert (edge.backlog_messages, edge.ring_used_bytes) == (0, 0)
    assert status.edge("gateway", "stats").ring_fill_percent == 100
    json.loads(to_json(status))


def test_a_ring_or_a_board_that_is_none_is_told(fake: Fake) -> None:
    system = fake()
    with system.header("ingest", "stats") as header:
        header[0] = 1
    status = read_status(system.path)
    assert len(status.edges) == 2
    assert status.notes[-1].startswith("the ring from ingest to stats cannot be read: not a usable ring: magic is 0x1")
    with system.segments[0].buf[:8] as raw:
        raw[:] = bytes(8)
    assert read_status(system.path).notes[0].startswith("the board cannot be read: not a usable board")


def test_texts_from_elsewhere_carry_nothing_to_the_terminal() -> None:
    assert first_line("\n  \x1b]0;title\x07red\x9b31m\r\n next") == "?]0;title?red?31m"
    assert len(first_line("x" * 5000)) == 200


# ------------------------------------------------------------------------------------------------------- rates
def _worker(pid: int, handled: int, cpu: float) -> WorkerStatus:
    fields: dict[str, object] = dict.fromkeys(WorkerStatus.__struct_fields__, 0)
    shown = ProcessStatus(
        state="running", cpu_percent=1, cpu_seconds=cpu, rss_bytes=0, threads=1, open_files=1, age_seconds=99
    )
    return WorkerStatus(
        **fields | {"name": "w", "pid": pid, "process": shown, "handled_messages": handled, "handled_per_second": 1.0}  # type: ignore[arg-type]
    )


def _reading(at: float, worker: WorkerStatus, run_id: str = "a") -> SystemStatus:
    return SystemStatus(
        name="s",
        directory="d",
        condition=Condition.RUNNING,
        summary="",
        run_id=run_id,
        read_at_monotonic_seconds=at,
        workers=(worker,),
    )


def test_rates_are_since_the_start_and_say_so(fake: Fake) -> None:
    system = fake()  # started 10 s ago
    system.fill("stats", HANDLED=1000, SENT=500)
    status = read_status(system.path)
    assert status.rates_since == "start"
    assert status.rates_over_seconds == pytest.approx(10, abs=5)
    assert status.worker("stats").handled_per_second == pytest.approx(100, rel=0.5)
    assert status.worker("stats").sent_per_second == pytest.approx(50, rel=0.5)


def test_rates_between_two_readings_are_over_the_time_between_them() -> None:
    status = with_rates(_reading(10, _worker(5, 1000, 2.0)), _reading(12, _worker(5, 1400, 3.0)))
    assert (status.rates_since, status.rates_over_seconds) == ("reading", 2)
    worker = status.workers[0]
    assert worker.handled_per_second == 200
    assert worker.process is not None
    assert worker.process.cpu_percent == 50


def test_the_processor_time_of_one_incarnation_is_not_taken_from_the_next() -> None:
    status = with_rates(_reading(10, _worker(5, 1000, 2.0)), _reading(12, _worker(6, 1400, 0.1)))
    assert status.workers[0].handled_per_second == 200
    assert status.workers[0].process is not None
    assert status.workers[0].process.cpu_percent == 1


def test_there_are_no_rates_between_two_runs() -> None:
    now = _reading(12, _worker(5, 1400, 3.0), run_id="b")
    assert with_rates(_reading(10, _worker(5, 1000, 2.0)), now) == now


def test_whoever_watches_gets_rates_over_the_time_between_readings(fake: Fake) -> None:
    system = fake()
    system.fill("stats", HANDLED=1000)
    stream = readings(lambda: read_status(system.path), read_status(system.path), interval=0.01)
    assert next(stream).rates_since == "start"  # type: ignore[union-attr]
    system.fill("stats", HANDLED=1100)
    second = next(stream)
    assert isinstance(second, SystemStatus)
    assert second.rates_since == "reading"
    assert second.worker("stats").handled_per_second == pytest.approx(100 / second.rates_over_seconds)


# ------------------------------------------------------------------------------------------------------- the rest
def test_the_keys_of_the_json_are_these(fake: Fake) -> None:
    """Programs depend on them: adding is fine, changing is not."""
    system = fake()
    system.fill("stats", BUSY_PEER=2, RETRY_PEER=2, GAPS=1)
    status = json.loads(to_json(read_status(system.path)))
    assert set(status) >= {
        "name", "directory", "condition", "summary", "notes", "level", "run_id", "state", "started_unix_seconds",
        "read_at_unix_seconds", "read_at_monotonic_seconds", "rates_since", "rates_over_seconds", "dead_letters",
        "supervisor", "workers", "gateway", "edges", "alarms", "ended", "leftovers", "journal_bytes_on_disk",
        "close_matches",
    }  # fmt: skip
    assert set(status["workers"][1]) >= {
        "name", "handlers", "pid", "state", "health", "epoch", "restarts", "last_death", "last_death_age_seconds",
        "uptime_seconds", "heartbeat_age_seconds", "process", "handled_messages", "sent_messages", "handled_per_second",
        "sent_per_second", "in_progress", "retry", "commits", "rollbacks", "duplicate_messages", "gaps", "dead_letters",
        "outbox_bytes", "outbox_over_limit", "multiplying", "carried_over_messages", "journal", "ring_implementation",
    }  # fmt: skip
    assert set(status["workers"][1]["process"]) >= {
        "state", "cpu_percent", "cpu_seconds", "rss_bytes", "threads", "open_files", "age_seconds",
    }  # fmt: skip
    assert set(status["workers"][1]["in_progress"]) >= {"id", "peer", "seq", "handler", "since_seconds"}
    assert set(status["workers"][1]["retry"]) >= {"id", "peer", "seq", "attempts", "next_in_seconds", "ordered"}
    assert set(status["workers"][1]["journal"]) >= {"level", "bytes", "segments", "last_commit_age_seconds"}
    assert set(status["edges"][0]) >= {
        "source", "target", "backlog_messages", "backlog_bytes", "outbox_bytes", "ring_used_bytes",
        "ring_capacity_bytes", "ring_fill_percent", "oldest_age_seconds", "committed", "published", "acknowledged",
        "waiting_for_room", "resends_asked",
    }  # fmt: skip
    assert set(status["supervisor"]) >= {"pid", "health", "heartbeat_age_seconds", "process"}
    assert set(status["alarms"][0]) >= {"kind", "worker", "text"}
    assert set(Ended.__struct_fields__) >= {"status", "name", "reason", "at_unix_seconds", "last_deaths"}
    assert (status["condition"], status["workers"][1]["health"]) == ("running", "ok")


def test_a_status_can_be_read_back_from_its_json(fake: Fake) -> None:
    status = read_status(fake().path)
    assert msgspec.json.decode(to_json(status), type=SystemStatus) == status


def test_a_name_is_looked_up_in_the_home_directory_and_a_path_is_a_path(
    fake: Fake, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fake()
    monkeypatch.setenv("RINGLEADER_HOME", str(home))
    monkeypatch.chdir(home)
    assert locate("other") == home / "other"
    assert locate("trades") == locate("./trades") == locate("../home/trades") == locate(system.path) == system.path
    assert locate("trades", tmp_path / "elsewhere") == system.path, "a run directory right here is meant, too"
    monkeypatch.chdir(system.path)
    assert locate(".") == system.path
    assert read_status(".").condition is Condition.RUNNING


def test_all_systems_of_a_home_are_listed_in_every_condition(fake: Fake, home: Path) -> None:
    fake("a")
    fake("b").end(0, "")
    (fake("c").path / "identity.json").write_text("{")
    RunDirectory.open(home / "empty").close()
    assert [(one.name, one.condition) for one in list_status(home).systems] == [
        ("a", Condition.RUNNING),
        ("b", Condition.STOPPED),
        ("c", Condition.UNREADABLE),
    ]
    assert list_status(home / "nowhere").systems == ()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.9, "59 s"), (192, "3 min 12 s"), (18185, "5 h 3 min"), (190000, "2 d 4 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(17, "17 B"), (1536, "1.5 KiB"), (24 << 20, "24 MiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert size(count) == words
