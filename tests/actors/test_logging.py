"""What SEMANTICS.md promises of logging, with real processes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import Handler, Message, System, Topology, events, handle
from actors.log_collect import Collector
from actors.log_record import Line, decode_line
from actors.process import start_forkserver
from bus import Block, Field
from tests.actors import waiting

ROOT = Path(__file__).parents[2]
log = logging.getLogger("tests.logged")
until = partial(waiting.until, seconds=60.0)  # programs start and end here


class Do(Message):
    what: str
    n: int = 0


class Done(Message):
    answer: int


class Talker(Handler):
    def __init__(self) -> None:
        self.at_end = 0

    def on_start(self) -> None:
        log.warning("start")

    @handle
    def on_do(self, do: Do) -> None:
        match do.what:
            case "say":
                for n in range(do.n):
                    log.warning("said %d", n, extra={"number": n, "what": ["a", 1.5]})
            case "fail":
                try:
                    raise ValueError("no good")
                except ValueError:
                    log.exception("it failed")
            case "thread":
                thread = threading.Thread(target=log.warning, args=("from a thread",), name="aside")
                thread.start()
                thread.join()
            case "quiet":
                log.debug("not wanted")
                logging.getLogger("tests.logged.loud").debug("wanted")
                self.reply(Done(int(log.isEnabledFor(logging.DEBUG))))
                return
            case "raise":
                raise ValueError("no good")
            case "die":
                if do.n:  # once
                    log.warning("last words of %d", os.getpid())
                    os.kill(os.getpid(), signal.SIGKILL)
            case "fork":
                pid = os.fork()
                if pid == 0:
                    log.warning("from a child")
                    os._exit(0)
                os.waitpid(pid, 0)
            case "flood at the end":
                self.at_end = do.n
            case "flood":
                for n in range(do.n):
                    log.info("flood %d", n)
        self.reply(Done(do.n))

    def on_stop(self) -> None:
        log.warning("stop")
        for n in range(self.at_end):
            log.info("flood %d", n)


class Chatter(Handler):
    """Never stops talking."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.n = 0

    def on_loop(self) -> float:
        for _ in range(20):
            log.warning("%d %d %s", os.getpid(), self.n, "x" * (self.size * (self.n % 3)))
            self.n += 1
        return 0.003


def talking(directory: Path, **options: Any) -> Topology:
    app = Topology("talking", directory=directory, **options)
    app.worker("booth", talker=Talker)
    app.external("talker", Do)
    return app


def do(system: System, what: str, n: int = 0) -> int:
    return system.ask("talker", Do(what, n), reply=Done).answer


def lines(directory: Path, *, growing: bool = False) -> list[Line]:
    """Of the whole log; every one of them whole. `growing`: but for the last one, which may be being written."""
    found = []
    for name in ("log.jsonl.1", "log.jsonl"):
        if (directory / name).exists():
            data = (directory / name).read_bytes()
            for raw in (data[: data.rfind(b"\n") + 1] if growing else data).splitlines():
                line = decode_line(raw)
                assert line is not None, raw
                found.append(line)
    return found


class Kept(logging.Handler):
    """What a program's own handler gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def named(self, text: str) -> Any:
        return next((one for one in self.records if one.getMessage() == text), None)


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_records_of_workers_reach_the_program_with_worker_handler_and_message(directory: Path, kept: Kept) -> None:
    with talking(directory).start() as system:
        pid = system.block("booth").get(Field.PID)
        for what in ("say", "fail", "thread", "fork"):
            do(system, what, 2)
    start, said, failed, aside, child, stop = (
        kept.named(text) for text in ("start", "said 1", "it failed", "from a thread", "from a child", "stop")
    )
    assert {(one.system, one.worker) for one in kept.records} == {("talking", "booth")}
    assert [(one.handler, one.message_id) for one in (start, said, failed, stop)] == [
        ("talker", ""),
        ("talker", "gateway/1"),
        ("talker", "gateway/2"),
        ("talker", ""),
    ]
    assert (said.process, said.processName, said.module, said.funcName) == (
        *(pid, "talking/booth", "test_logging", "on_do"),
    )
    assert (said.number, said.what) == (1, ["a", 1.5])
    assert failed.exc_text.endswith("ValueError: no good")
    assert (aside.threadName, aside.handler, aside.message_id) == ("aside", "", "")
    assert child.process not in {pid, os.getpid()}
    written = [line.message for line in lines(directory) if line.logger == log.name]
    assert written == [one.getMessage() for one in kept.records]
    events = [line.extra.get("event") for line in lines(directory) if line.logger == "ringleader"]
    assert events[0] == "SystemStarted"
    assert events[-1] == "SystemStopped"


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_message_that_is_given_up_is_told_with_its_reason(
    directory: Path, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    with talking(directory, durability=level, max_attempts=2).start() as system:
        system.send("talker", Do("raise"))
        assert do(system, "say", 1) == 1
    (record,) = [one for one in caplog.records if "dead letter" in one.getMessage()]
    assert record.getMessage() == (
        f"message gateway/1, a {__name__}.Do to talker, became a dead letter after 2 attempts: ValueError: no good"
    )
    assert (record.name, record.levelname, record.worker) == ("ringleader", "WARNING", "booth")  # type: ignore[attr-defined]
    assert record.getMessage() in [line.message for line in lines(directory)]


def test_workers_send_only_what_the_program_wants(directory: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tests.logged.loud"), "level", logging.DEBUG)
    with talking(directory).start() as system:
        assert do(system, "quiet") == 0
    assert kept.named("wanted") is not None
    assert kept.named("not wanted") is None
    assert not [line for line in lines(directory) if line.message == "not wanted"]


def kill(system: System, worker: str, first: Callable[[int], object]) -> int:
    """Once `first` holds of its pid; waits for the next incarnation."""
    block = system.block(worker)
    pid, epoch = block.get(Field.PID), block.get(Field.EPOCH)
    until(lambda: first(pid), "what comes before its death")
    os.kill(pid, signal.SIGKILL)
    until(lambda: block.get(Field.EPOCH) > epoch and block.get(Field.PID), "its next incarnation")
    return pid


def changed(block: Block, epoch: int) -> bool:
    return block.get(Field.EPOCH) > epoch


def test_a_record_survives_the_sigkill_of_the_worker_that_wrote_it(directory: Path, kept: Kept) -> None:
    with talking(directory, max_attempts=1).start() as system:
        block = system.block("booth")
        for n in range(1, 4):
            pid, epoch = block.get(Field.PID), block.get(Field.EPOCH)
            system.send("talker", Do("die", n))
            until(partial(kept.named, f"last words of {pid}"), "its last words")
            until(partial(changed, block, epoch), "its next incarnation")
    assert len([line for line in lines(directory) if line.message.startswith("last words")]) == 3


def test_kills_of_a_worker_that_logs_tear_nothing_and_stop_nobody(directory: Path, kept: Kept) -> None:
    app = talking(directory, max_restarts=1000, backoff_first=0.0, backoff_max=0.01, log_bytes=1 << 30)
    app.worker("hall", chatter=Chatter.spec(size=2000))
    start_forkserver(())  # it is the program's: it stays, whichever of its systems was the first to need it
    descriptors = len(os.listdir("/proc/self/fd"))
    pids = []
    with app.start() as system:
        for _ in range(12):
            pids.append(kill(system, "hall", lambda pid: any(one.process == pid for one in kept.records[-200:])))
            assert do(system, "say", 1) == 1
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    talk = [line for line in lines(directory) if line.worker == "hall" and line.logger == log.name]
    numbers: dict[int, list[int]] = {}
    for line in talk:
        match = re.fullmatch(r"(\d+) (\d+) (x*)", line.message)
        assert match is not None, line.message
        pid, n = int(match[1]), int(match[2])
        assert len(match[3]) == 2000 * (n % 3)
        numbers.setdefault(pid, []).append(n)
    assert numbers.keys() >= set(pids)
    for sequence in numbers.values():
        assert sequence == sorted(set(sequence)), "in order, none twice"
    assert Counter(one.getMessage() for one in kept.records)["said 0"] == 12


def test_a_flood_is_bounded_in_memory_and_every_record_arrives_or_is_counted(directory: Path, kept: Kept) -> None:
    log.setLevel(logging.INFO)
    kept.addFilter(lambda record: record.levelno > logging.INFO)
    log.propagate = False  # the test runner's own handler keeps every record: at 1 KiB each, more than is looked for
    try:
        with talking(directory, log_bytes=512 << 10).start() as system:
            before = psutil.Process().memory_info().rss
            assert do(system, "flood", 60_000) == 60_000
            worker = psutil.Process(system.block("booth").get(Field.PID)).memory_info().rss
            grown = psutil.Process().memory_info().rss - before
        assert grown < 32 << 20
        assert worker < 128 << 20
    finally:
        log.propagate = True
        log.setLevel(logging.NOTSET)
    # How much has arrived is for the machine to say: one file is enough where the supervisor had little time.
    assert sum(path.stat().st_size for path in directory.glob("log.jsonl*")) <= 512 << 10


@pytest.mark.parametrize("what", ["flood", "flood at the end"])
def test_drops_and_arrivals_add_up(directory: Path, kept: Kept, what: str) -> None:
    log.setLevel(logging.INFO)
    try:
        with talking(directory, log_bytes=64 << 20).start() as system:
            do(system, what, 20_000)
    finally:
        log.setLevel(logging.NOTSET)
    written = lines(directory)
    arrived = sum(line.logger == log.name for line in written)
    told = [re.match(r"(\d+) records were dropped", line.message) for line in written]
    dropped = sum(int(match[1]) for match in told if match)
    assert arrived + dropped == 20_000 + len(("start", "stop"))  # of which each may be dropped as well


def test_what_a_worker_could_not_tell_before_its_end_is_told_for_it(
    directory: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor takes no record before the worker is dead."""
    log.setLevel(logging.INFO)
    take, dead = Collector._take, threading.Event()

    def late(*given: Any) -> bool:
        assert dead.wait(60)
        return take(*given)

    def observe(event: events.Event) -> None:
        if isinstance(event, events.WorkerEnded):
            dead.set()

    monkeypatch.setattr(Collector, "_take", late)
    try:
        with talking(directory, log_bytes=64 << 20).start(observer=observe) as system:
            do(system, "flood at the end", 20_000)
    finally:
        log.setLevel(logging.NOTSET)
    told = [re.match(r"(\d+) records were dropped", line.message) for line in lines(directory)]
    (dropped,) = [int(match[1]) for match in told if match]
    assert dropped + sum(line.logger == log.name for line in lines(directory)) == 20_000 + len(("start", "stop"))


def test_no_log_is_kept_where_the_topology_says_so(directory: Path, kept: Kept) -> None:
    with talking(directory, log_bytes=0).start() as system:
        do(system, "say", 1)
    assert kept.named("said 0") is not None
    assert not (directory / "log.jsonl").exists()


# ------------------------------------------------------------------------------------------------------- as programs
SCRIPT = """
    import logging, sys, time
    from actors import Handler, Topology

    class Speaker(Handler):
        def __init__(self):
            self.n = 0
        def on_loop(self):
            for _ in range(50):
                logging.warning("%d", self.n)
                self.n += 1
            with open(sys.argv[1] + "/progress", "w") as file:
                file.write(str(self.n))
            if self.n == LIMIT:
                self.stop_system()
                return float("inf")
            return 0.001

    app = Topology("speech", directory=sys.argv[1] + "/run", log_bytes=64 << 20)
    app.worker("hall", speaker=Speaker)
    SETUP
    if __name__ == "__main__":
        app.run()
"""


def script(folder: Path, limit: int, setup: str = "") -> list[str]:
    path = folder / "speech.py"
    text = textwrap.dedent(SCRIPT).replace("LIMIT", str(limit)).replace("SETUP", setup)
    path.write_text(text.replace("sys.argv[1]", repr(str(folder))))
    return [sys.executable, str(path)]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for one in running:
        one.terminate()
        one.communicate(timeout=60)


def test_a_stopped_supervisor_does_not_stop_workers_that_log(
    tmp_path: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    child = program(*script(tmp_path, 10**9, "logging.basicConfig(handlers=[logging.NullHandler()])"))
    progress = tmp_path / "progress"

    def reached() -> int:
        return int(progress.read_text() or 0) if progress.exists() else 0

    until(lambda: reached() > 0, "the worker")
    os.kill(child.pid, signal.SIGSTOP)
    try:
        stopped_at = reached()
        until(lambda: reached() > stopped_at + 20_000, "work while the supervisor is stopped")
    finally:
        os.kill(child.pid, signal.SIGCONT)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
    written = lines(tmp_path / "run")
    numbers = [int(line.message) for line in written if line.logger == "root"]
    dropped = sum(int(m[1]) for line in written if (m := re.match(r"(\d+) records were dropped", line.message)))
    assert numbers == sorted(numbers)
    assert dropped > 10_000
    assert len(numbers) + dropped == reached()


def test_a_program_without_logging_gets_warnings_on_stderr(
    tmp_path: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    child = program(*script(tmp_path, 50))
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert err.splitlines() == [f"hall/speaker: {n}" for n in range(50)]


@pytest.mark.parametrize(
    ("options", "setup", "shown"),
    [
        ([], "", r"\d\d:\d\d:\d\d\.\d{3} WARNING hall/speaker: 0"),
        (["--log-format", "json"], "", r'\{"time":"[^"]+Z","level":"WARNING","logger":"root","worker":"hall",.*\}'),
        (["--log-level", "info"], "", r"[\d:.]+ INFO supervisor: system 'speech' started by process .*"),
        (["--log-level", "error"], "logging.basicConfig(format='%(levelname)s of mine')", "ringleader: --log-level .*"),
    ],
)
def test_ringleader_run_logs_to_stderr_as_it_is_told(
    tmp_path: Path, program: Callable[..., subprocess.Popen[str]], options: list[str], setup: str, shown: str
) -> None:
    path = script(tmp_path, 50, setup)[1]
    child = program(sys.executable, "-m", "actors", "run", path, *options)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0
    first, *rest = err.splitlines()
    assert re.fullmatch(shown, first)
    if setup:
        assert rest[0] == "WARNING of mine"


def test_ringleader_run_refuses_a_wrong_level(tmp_path: Path, program: Callable[..., subprocess.Popen[str]]) -> None:
    child = program(sys.executable, "-m", "actors", "run", script(tmp_path, 50)[1], "--log-level", "loud")
    _, err = child.communicate(timeout=60)
    assert (child.returncode, "'loud' is no level" in err) == (2, True)


def test_logs_are_there_after_the_supervisor_was_killed(
    tmp_path: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    child = program(*script(tmp_path, 10**9))
    until(lambda: (tmp_path / "run" / "log.jsonl").exists(), "the log")
    until(lambda: any(line.logger == "root" for line in lines(tmp_path / "run", growing=True)), "a record")
    child.kill()
    child.communicate()
    shown = subprocess.run(
        [sys.executable, "-m", "actors", "logs", str(tmp_path / "run"), "--json", "--worker", "hall", "-n", "5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    workers = {json.loads(line)["worker"] for line in shown.stdout.splitlines()}
    again = program(*script(tmp_path, 10**9))

    def starts() -> int:
        return sum(line.extra.get("event") == "SystemStarted" for line in lines(tmp_path / "run", growing=True))

    until(lambda: starts() == 2, "a new one")
    again.terminate()
    assert again.wait(60) == 0
    assert workers == {"hall"}
