"""The command `ringleader`: what it prints, where, and the exit codes that its help promises."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from actors import stopping
from actors.cli import app
from actors.identity import stale_prefix
from actors.rundir import RunDirectory
from actors.status import read_status
from actors.status_types import Condition, Health, SystemStatus
from bus import BoardCell, Text, WorkerState
from bus.segment import remove_stale

from .faked import SECOND, FakeSystem, ended_process, process, send
from .waiting import until

ROOT = Path(__file__).parents[2]
NOBODY = 65534

Fake = Callable[..., FakeSystem]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["pytest"])
    return tmp_path / "home"


@pytest.fixture
def fake(home: Path) -> Iterator[Fake]:
    made: list[FakeSystem] = []

    def make(name: str = "trades", **options: Any) -> FakeSystem:
        made.append(FakeSystem(home, name, **options))
        return made[-1]

    yield make
    for system in made:
        system.unlink()


def ringleader(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(result: Result) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    return result.exit_code, result.stdout, result.stderr


# ------------------------------------------------------------------------------------------------------- status
def test_status_shows_workers_messages_and_edges(fake: Fake, home: Path) -> None:
    system = fake()
    system.fill("stats", HANDLED=123456, SENT=777, BUSY_PEER=2, BUSY_SEQ=41, BUSY_HANDLER=1, RING_IMPLEMENTATION=1)
    system.fill("ingest", RING_IMPLEMENTATION=1)
    system.edge("ingest", "stats", COMMITTED=900, ACK=100, TAIL=2048, OUTBOX_BYTES=1 << 20)
    code, out, err = told(ringleader("status", "trades"))
    assert (code, err) == (0, "")
    assert out.startswith("trades: running\nlevel process, supervisor ")
    assert "rings in C" in out
    assert str(system.path) in out
    assert re.search(rf"stats +{os.getpid()} +running +1 +0", out)
    assert re.search(r"messages; rates and CPU over 1\d s since the start", out)
    assert re.search(r"stats +123456 +777 +\d+ +\d+\.?\d* +ingest/41 stats_first", out)
    assert re.search(r"ingest -> stats +800 +1\.0 MiB +2\.0 KiB +4\.0 KiB +50 +1\.0 MiB", out)
    assert "gateway -> stats" not in out


def test_status_works_without_a_terminal_and_in_few_columns(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = told(ringleader("status", "trades"))
    assert code == 0
    assert "\x1b" not in out


def test_status_as_json_is_the_status_of_the_program(fake: Fake) -> None:
    system = fake()
    system.fill("stats", HANDLED=5)
    code, out, err = told(ringleader("status", "trades", "--json"))
    assert (code, err) == (0, "")
    status = msgspec.json.decode(out, type=SystemStatus)
    assert status.condition is Condition.RUNNING
    assert status.worker("stats").handled_messages == 5


def test_status_without_a_name_shows_the_only_system(fake: Fake) -> None:
    fake("weather")
    assert told(ringleader("status"))[1].startswith("weather: running\n")
    assert json.loads(ringleader("status", "--json").stdout)["name"] == "weather"


def test_status_without_a_name_lists_several_systems(fake: Fake, home: Path) -> None:
    fake("weather")
    fake("trades").end(4, "not drained within 30 s")
    code, out, err = told(ringleader("status"))
    assert (code, err) == (0, "")
    assert out.startswith(f"systems in {home}")
    assert re.search(rf"weather +running +process +2 +{os.getpid()} +running", out)
    assert re.search(r"trades +stopped +process +- +- +stopped \d+\.?\d* s ago with status 4", out)
    listed = json.loads(ringleader("status", "--json").stdout)
    assert (listed["home"], [one["name"] for one in listed["systems"]]) == (str(home), ["trades", "weather"])


def test_status_takes_another_home_and_paths(fake: Fake, tmp_path: Path) -> None:
    system = fake()
    elsewhere = FakeSystem(tmp_path / "elsewhere", "weather")
    try:
        assert ringleader("status", "--home", tmp_path / "elsewhere").stdout.startswith("weather: running")
        assert ringleader("status", elsewhere.path).stdout.startswith("weather: running")
        assert ringleader("status", system.path).stdout.startswith("trades: running")
    finally:
        elsewhere.unlink()


def test_status_of_a_stopped_system_exits_3(fake: Fake) -> None:
    fake().end(0, "everything was handled")
    code, out, err = told(ringleader("status", "trades"))
    assert (code, err) == (3, "")
    assert re.match(
        r"trades: stopped \d+\.?\d* s ago with status 0 \(OK, clean end: .*\): everything was handled\n", out
    )


def test_status_of_a_dead_system_exits_3_and_names_what_is_left(fake: Fake) -> None:
    system = fake(pid=ended_process())
    system.fill("stats", PID=0)
    system.block("stats").set_text(Text.LAST_DEATH, "killed by SIGKILL")
    code, out, _ = told(ringleader("status", "trades"))
    assert code == 3
    assert out.startswith("trades: dead: its supervisor, process ")
    assert "4 shared-memory segments left over, which the next start removes" in out
    assert "! worker stats: last death: killed by SIGKILL" in out


def test_status_of_an_unknown_system_exits_4_and_says_so_on_standard_error(fake: Fake, home: Path) -> None:
    fake("trades")
    code, out, err = told(ringleader("status", "trade"))
    assert (code, out) == (4, "")
    assert err == f"unknown system 'trade': there is no run directory at {home / 'trade'}; did you mean trades?\n"
    assert json.loads(ringleader("status", "trade", "--json").stdout)["condition"] == "unknown"


def test_status_without_any_system_exits_4(home: Path) -> None:
    code, out, err = told(ringleader("status"))
    assert (code, out, err) == (4, "", f"no systems in {home}\n")


def test_status_of_an_unreadable_system_exits_1(fake: Fake) -> None:
    (fake().path / "identity.json").write_text("?")
    code, out, err = told(ringleader("status", "trades"))
    assert (code, out) == (1, "")
    assert "identity.json: is damaged" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_status_of_another_users_system_exits_5(fake: Fake, home: Path) -> None:
    os.chown(fake().path, NOBODY, NOBODY)
    code, out, err = told(ringleader("status", "trades"))
    assert (code, out) == (5, "")
    assert "belongs to another user" in err
    os.chown(home, NOBODY, NOBODY)
    os.seteuid(NOBODY - 1)
    try:
        assert ringleader("status").exit_code == 5
    finally:
        os.seteuid(0)


def test_wrong_usage_exits_2(home: Path) -> None:
    assert ringleader("status", "--nosuch").exit_code == 2
    assert ringleader("nosuch").exit_code == 2


def test_a_hung_worker_does_not_change_the_exit_code(fake: Fake) -> None:
    system = fake()
    system.fill("stats", HEARTBEAT_NS=time.monotonic_ns() - 8 * SECOND, STARTED_NS=0)
    code, out, _ = told(ringleader("status", "trades"))
    assert code == 0
    assert out.startswith("trades: running, 1 worker hung\n")
    assert "running, HUNG" in out
    assert "1 worker hung" not in ringleader("status", "trades", "--hung-after", "60").stdout


def test_names_from_elsewhere_are_not_taken_for_markup_or_control_sequences(home: Path) -> None:
    system = FakeSystem(home, "trades", workers=["[red]a", "b\x1b[2J"])
    try:
        out = ringleader("status", "trades").stdout
    finally:
        system.unlink()
    assert "[red]a" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("command", [["run"], ["status"], ["stop"], ["dead-letters", "list"]])
def test_the_help_of_every_command_documents_its_exit_status(command: list[str]) -> None:
    code, out, _ = told(ringleader(*command, "--help"))
    assert code == 0
    codes = re.findall(r"^ +(\d)  \w", out.partition("Exit status:")[2], re.MULTILINE)
    assert codes[0] == "0"
    assert len(codes) >= 4
    assert len(set(codes)) == len(codes)


def test_the_version_is_told() -> None:
    code, out, _ = told(ringleader("--version"))
    assert code == 0
    assert re.match(r"ringleader \d+\.\d+", out)


# ------------------------------------------------------------------------------------------------------- watching
def test_watching_redraws_until_it_is_interrupted(fake: Fake, home: Path) -> None:
    system = fake()
    system.fill("stats", HANDLED=111111)
    control, terminal = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "actors", "status", "trades", "--watch"], cwd=ROOT, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    seen = b""
    try:

        def shows(text: bytes) -> bool:
            nonlocal seen
            if select.select([control], [], [], 0.05)[0]:
                seen += os.read(control, 65536)
            return text in seen

        until(lambda: shows(b"111111"), "the first picture", 30)
        system.fill("stats", HANDLED=222222)
        until(lambda: shows(b"222222"), "the second picture", 30)
        (seconds, *_) = re.findall(rb"over the last ([\d.]+) s", seen)
        assert float(seconds) >= 1.0, "the pictures are a second apart, on a machine that has time for them"
        watching.send_signal(signal.SIGINT)
        until(lambda: shows(b"\x1b[?25h"), "the cursor to be shown again", 30)
        assert watching.wait(30) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(control)
    assert b"Traceback" not in seen
    assert b"Aborted" not in seen


def test_watching_for_programs_gives_an_object_per_line(fake: Fake, home: Path) -> None:
    fake()
    command = [sys.executable, "-m", "actors", "status", "trades", "--watch", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        since = [json.loads(watching.stdout.readline())["rates_since"] for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
        assert watching.stderr.read() == ""
    assert since == ["start", "reading"]


# ------------------------------------------------------------------------------------------------------- stop
HEARS = """
import os, signal, sys
heard = 0
def on_signal(number, frame):
    global heard
    heard += 1
    if heard == int(sys.argv[1]):
        os._exit(heard)
signal.signal(signal.SIGTERM, on_signal)
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def hearing() -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(ends_at: int) -> subprocess.Popen[str]:
        """A process that exits when it is sent so many SIGTERMs, with their number."""
        child = subprocess.Popen([sys.executable, "-c", HEARS, str(ends_at)], stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_stop_of_a_system_that_does_not_run_exits_3(fake: Fake) -> None:
    fake().end(0, "")
    code, _, err = told(ringleader("stop", "trades"))
    assert code == 3
    assert err.startswith("ringleader: trades: stopped ")


def test_stop_of_an_unknown_system_exits_4(home: Path) -> None:
    assert ringleader("stop", "nosuch").exit_code == 4


def test_stop_never_signals_a_process_that_only_got_the_same_number(fake: Fake) -> None:
    with process() as child:
        system = fake(pid=child.pid)
        with RunDirectory.open(system.path) as directory:
            directory.write_identity(msgspec.structs.replace(system.identity, start_time=1))
        assert ringleader("stop", "trades").exit_code == 3
        assert child.poll() is None


def test_stop_sends_one_signal_and_with_now_a_second(
    fake: Fake, hearing: Callable[[int], subprocess.Popen[str]]
) -> None:
    child = hearing(2)
    fake(pid=child.pid)
    code, _, err = told(ringleader("stop", "trades", "--timeout", "0.8"))
    assert code == 6
    assert "has not ended within 0.8 s (running); --now does not wait" in err
    assert child.poll() is None, "one signal was sent, not two"
    child = hearing(2)
    fake("weather", pid=child.pid)
    code, _, err = told(ringleader("stop", "weather", "--now", "--timeout", "30"))
    assert child.wait(30) == 2
    assert code == 1
    assert err == f"ringleader: weather: its process {child.pid} has ended without a record of how\n"


@pytest.mark.parametrize("state", [WorkerState.RUNNING, WorkerState.DRAINING, WorkerState.STOPPING])
def test_stop_without_now_sends_no_signal_to_one_that_ends_already(
    fake: Fake, hearing: Callable[[int], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, state: WorkerState
) -> None:
    """It may have had one, and the second is the one that stops now."""
    sent: list[int] = []
    monkeypatch.setattr(stopping, "_signal", lambda identity: sent.append(identity.pid))
    child = hearing(1)
    system = fake(pid=child.pid)
    system.board.set(BoardCell.SYSTEM_STATE, state)
    code, _, err = told(ringleader("stop", "trades", "--timeout", "0.1"))
    assert code == 6
    assert f"has not ended within 0.1 s ({state.name.lower()})" in err
    assert sent == ([child.pid] if state is WorkerState.RUNNING else [])


def test_stop_tells_that_a_stopped_supervisor_hears_nothing(
    fake: Fake, hearing: Callable[[int], subprocess.Popen[str]]
) -> None:
    child = hearing(1)
    fake(pid=child.pid)
    send(child.pid, signal.SIGSTOP)
    code, _, err = told(ringleader("stop", "trades", "--timeout", "0.1"))
    assert code == 6
    assert f"its supervisor is stopped (SIGSTOP) and hears nothing before `kill -CONT {child.pid}`" in err


# ------------------------------------------------------------------------------------------------------- run
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no Topology at the top level"),
        ("1 / 0", "importing it failed with ZeroDivisionError"),
        ("from actors import Topology\napp = Topology('x')\napp.route('a', int, to='b')", "topology 'x' has "),
    ],
)
def test_run_of_a_wrong_file_exits_2_and_starts_nothing(home: Path, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "loaded_wrong.py"
    path.write_text(text)
    paths = list(sys.path)
    code, out, err = told(ringleader("run", path))
    sys.path[:] = paths
    sys.modules.pop("loaded_wrong", None)
    assert (code, out) == (2, "")
    assert reason in err
    assert not home.exists()


def test_run_of_a_missing_file_exits_2(home: Path) -> None:
    code, _, err = told(ringleader("run", "nosuch.py:app"))
    assert (code, err) == (2, "ringleader: nosuch.py: there is no such file\n")


# ------------------------------------------------------------------------------------------------------- all of it
LIVE = """
    import time
    from pathlib import Path
    from actors import Handler, Message, State, Topology, handle

    HERE = Path(__file__).parent

    class Job(Message):
        n: int
        kind: str

    class Position(State):
        n: int = 0

    class Source(Handler):
        state: Position
        def on_loop(self) -> float:
            kinds = (HERE / "jobs").read_text().split()
            if self.state.n == len(kinds):
                return 0.01
            self.state.n += 1
            self.send(Job(self.state.n, kinds[self.state.n - 1]))
            return 0.0

    class Worker(Handler):
        @handle
        def on_job(self, job: Job) -> None:
            if job.kind == "raise":
                raise ValueError("no good")
            while job.kind == "wait" and not (HERE / "go").exists():
                time.sleep(0.01)

    app = Topology("live", drain_timeout=60.0)
    app.worker("feed", source=Source)
    app.worker("desk", worker=Worker)
    app.route("source", Job, to="worker")

    if __name__ == "__main__":
        raise SystemExit("the file was run, not imported")
"""


class Live:
    """The system above, run by `ringleader run`; jobs are words in a file."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.path = folder, home / "live"
        (folder / "live.py").write_text(textwrap.dedent(LIVE))
        (folder / "jobs").write_text("")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "actors", "run", str(folder / "live.py")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.until(lambda status: status.state == "running", "the system to be up")

    def jobs(self, *kinds: str) -> None:
        with (self.folder / "jobs").open("a") as file:
            file.write("".join(f"{kind}\n" for kind in kinds))

    def go(self) -> None:
        (self.folder / "go").touch()

    def until(self, condition: Callable[[SystemStatus], object], what: str, **options: Any) -> SystemStatus:
        """Awaits a status, and returns it."""
        found: list[SystemStatus] = []

        def look() -> bool:
            found[:] = [read_status(self.path, **options)]
            return bool(condition(found[0]))

        until(look, what, 30)
        return found[0]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def live(tmp_path: Path, home: Path) -> Iterator[Live]:
    system = Live(tmp_path, home)
    yield system
    system.process.kill()
    system.process.communicate()
    with RunDirectory.open(system.path) as directory:
        identity = directory.read_identity()
    assert identity is not None
    remove_stale(stale_prefix(identity))


def test_a_system_is_run_watched_and_stopped(live: Live) -> None:
    live.jobs("fine", "raise", "fine")
    status = live.until(lambda now: now.worker("desk").handled_messages >= 2, "two messages to be handled")
    assert told(ringleader("status", "live"))[:1] == (0,)
    code, out, err = told(ringleader("dead-letters", "list", "live", "--verbose"))
    assert (code, err) == (0, "")
    assert re.search(r"feed/2 +desk +live\.Job +\d+ B +source +worker +3 +\S+ +ValueError: no good", out)
    assert 'raise ValueError("no good")' in out
    listed = json.loads(ringleader("dead-letters", "list", "live", "--json").stdout)
    assert [(letter["id"], letter["type"], "traceback" in letter) for letter in listed["dead_letters"]] == [
        ("feed/2", "live.Job", False)
    ]
    assert read_status(live.path).dead_letters == 1
    assert status.supervisor is not None
    assert status.supervisor.pid == live.process.pid
    code, out, err = told(ringleader("stop", "live"))
    ended = "live: stopped with status 0: everything was handled, but for 1 dead letter\n"
    assert (code, out, err) == (0, ended, "")
    code, out, err = live.end()
    assert (code, out) == (0, "")
    assert "feed/2, a live.Job to worker, became a dead letter after 3 attempts: ValueError: no good\n" in err
    status = read_status(live.path)
    assert (status.condition, status.leftovers) == (Condition.STOPPED, ())
    assert ringleader("dead-letters", "list", "live").stdout.count("feed/2") == 1, "also when it does not run"


def test_a_handler_that_hangs_is_named_with_its_message(live: Live) -> None:
    live.jobs("fine", "wait", "fine")
    status = live.until(
        lambda now: now.worker("desk").health is Health.HUNG and "1 worker hung" in now.summary,
        "the worker, and nobody else, to be called hung",
        hung_after=1.0,
    )
    busy = status.worker("desk").in_progress
    assert busy is not None
    assert (busy.id, busy.handler) == ("feed/2", "worker")
    assert status.edge("feed", "desk").backlog_messages >= 1
    live.go()
    live.until(
        lambda now: now.worker("desk").health is Health.OK and not now.edge("feed", "desk").backlog_messages, "ok"
    )


def test_a_stopped_worker_is_told_and_what_waits_for_it(live: Live) -> None:
    pid = live.until(lambda now: now.worker("desk").pid, "the worker").worker("desk").pid
    assert pid is not None
    send(pid, signal.SIGSTOP)
    live.jobs(*["fine"] * 50)

    def waits(now: SystemStatus) -> bool:
        """Its sender counts what it has committed before that is in the ring, and tells last since when."""
        edge = now.edge("feed", "desk")
        return edge.backlog_messages == 50 and edge.ring_used_bytes > 50 and edge.oldest_age_seconds is not None

    status = live.until(waits, "the backlog")
    assert status.worker("desk").health is Health.STOPPED
    edge = status.edge("feed", "desk")
    assert edge.backlog_bytes == edge.ring_used_bytes
    send(pid, signal.SIGCONT)
    status = live.until(lambda now: now.worker("desk").handled_messages == 50, "the backlog to be handled")


def test_a_stopped_supervisor_is_told_and_its_workers_go_on(live: Live) -> None:
    send(live.process.pid, signal.SIGSTOP)
    live.jobs("fine")
    status = live.until(lambda now: now.worker("desk").handled_messages == 1, "the message to be handled")
    assert status.summary == "running, supervisor stopped"
    pid = status.worker("desk").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    status = live.until(lambda now: now.worker("desk").health is Health.GONE, "the worker to be gone")
    assert status.summary == "running, supervisor stopped, 1 worker gone"
    send(live.process.pid, signal.SIGCONT)

    def is_back(now: SystemStatus) -> bool:
        """The cells of a worker are read one after the other: its restarts may be newer than its process."""
        return now.worker("desk").restarts == 1 and now.worker("desk").pid not in {None, pid}

    status = live.until(is_back, "the restart")
    assert status.worker("desk").last_death == "killed by SIGKILL"
    assert f"process {pid}" not in "".join(status.notes)


def test_a_killed_supervisor_leaves_a_dead_system_and_no_worker(live: Live) -> None:
    live.jobs("wait")
    live.until(lambda now: now.worker("desk").in_progress, "the message to be in progress")
    live.process.kill()
    live.process.wait()
    status = live.until(lambda now: all(w.process is None for w in now.workers), "the workers to be gone")
    assert status.condition is Condition.DEAD
    assert len(status.leftovers) == 1 + len(status.edges)
    assert [worker.name for worker in status.workers] == ["feed", "desk"]
    assert ringleader("status", "live").exit_code == 3
    assert ringleader("stop", "live").exit_code == 3


def test_stop_now_does_not_wait_for_what_is_under_way(live: Live) -> None:
    live.jobs("wait")
    live.until(lambda now: now.worker("desk").in_progress, "the message to be in progress")
    code, _, err = told(ringleader("stop", "live", "--timeout", "0.2"))
    assert code == 6
    assert "has not ended within 0.2 s (" in err
    live.until(lambda now: now.state == "draining", "the drain")
    code, _, err = told(ringleader("stop", "live", "--timeout", "0.2"))
    assert code == 6
    assert "has not ended within 0.2 s (draining)" in err
    code, out, err = told(ringleader("stop", "live", "--now", "--timeout", "30"))
    assert (code, err) == (0, "")
    assert out.startswith("live: stopped with status 4: stopped before everything was handled")
    assert live.end()[0] == 4


def test_an_interrupted_run_drains_and_exits_0(live: Live) -> None:
    live.jobs("fine")
    live.process.send_signal(signal.SIGINT)
    assert live.end() == (0, "", "")
    assert read_status(live.path).condition is Condition.STOPPED
