"""Logging in a worker, without one: the handler and its socket in this process."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from actors import log_worker
from actors.log_record import Packet, Sent, decode
from actors.log_worker import PATIENCE, Levels, Patience, SupervisorHandler


class Line:
    """A logger whose only handler is that of workers, and the other end."""

    def __init__(self) -> None:
        sending, self.reading = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sending = sending
        self.reading.setblocking(False)
        self.handler = SupervisorHandler(sending)
        self.log = logging.Logger("app")
        self.log.addHandler(self.handler)

    def packets(self) -> list[Packet]:
        found = []
        try:
            while data := self.reading.recv(1 << 17):
                found.append(decode(data))
        except BlockingIOError:
            pass
        return found

    def records(self) -> list[Sent]:
        return [packet.record for packet in self.packets() if packet.record is not None]

    def fill(self) -> int:
        """Until nothing more goes in. How many records did."""
        count = 0
        while not self.handler.dropped:
            self.log.debug("filling")
            count += 1
        self.handler.dropped = 0
        return count - 1

    def close(self) -> None:
        self.sending.close()
        self.reading.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def test_a_record_is_sent_as_text_with_what_only_the_worker_knows(line: Line) -> None:
    line.handler.at_work = lambda: ("averager", "ingest/3")
    try:
        raise ValueError("no good")
    except ValueError:
        line.log.exception("%d of %s", 3, "x", extra={"symbol": "ACME", "thing": {1}})
    (record,) = line.records()
    assert (record.name, record.level, record.level_name, record.message) == ("app", 40, "ERROR", "3 of x")
    assert (record.handler, record.message_id) == ("averager", "ingest/3")
    assert (record.process, record.thread) == (os.getpid(), threading.get_ident())
    assert (record.path, record.function) == (__file__, "test_a_record_is_sent_as_text_with_what_only_the_worker_knows")
    assert record.traceback.endswith("ValueError: no good")
    assert record.extra == {"symbol": "ACME", "thing": "{1}"}


def test_another_thread_handles_no_message(line: Line) -> None:
    line.handler.at_work = lambda: ("averager", "ingest/3")
    thread = threading.Thread(target=line.log.warning, args=("from a thread",), name="mine")
    thread.start()
    thread.join()
    (record,) = line.records()
    assert (record.handler, record.message_id, record.thread_name) == ("", "", "mine")


def test_a_full_socket_drops_records_and_says_so_when_there_is_room(line: Line) -> None:
    line.fill()
    for _ in range(5):
        line.log.info("lost")
    line.packets()
    line.log.info("after")
    assert [(packet.dropped, packet.record and packet.record.message) for packet in line.packets()] == [(5, "after")]
    line.log.info("and on")
    assert [packet.dropped for packet in line.packets()] == [0]


def test_what_was_dropped_is_told_without_another_record(line: Line) -> None:
    line.fill()
    line.log.info("lost")
    line.handler.tell()
    assert line.handler.dropped == 1, "no room yet"
    line.packets()
    line.handler.tell()
    assert line.packets() == [Packet(1)]
    assert line.handler.dropped == 0


def test_how_many_were_dropped_is_known_outside_until_it_is_told(line: Line) -> None:
    counted: list[int] = []
    line.handler.counts(counted.append)
    line.fill()
    for _ in range(2):
        line.log.info("lost")
    assert counted[-2:] == [1, 2]
    line.packets()
    line.log.info("after")
    assert counted[-1] == 0
    line.handler.forked()  # a process of the user's counts for nobody
    line.fill()
    line.log.info("lost")
    assert (line.handler.dropped, counted[-1]) == (1, 0)


def test_nobody_waits_longer_than_the_patience_for_room(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.fill()
    now, room = 0.0, line.handler._room
    line.handler._patience = Patience(lambda: now)
    asked: list[float] = []

    def waits(seconds: float) -> bool:
        asked.append(seconds)
        return room(seconds)

    monkeypatch.setattr(line.handler, "_room", waits)
    for period in (1, 2):
        begun = time.monotonic()
        for _ in range(200):
            line.log.error("waits for room")
        assert time.monotonic() - begun >= PATIENCE * 0.9
        assert line.handler.dropped == 200 * period
        assert sum(asked) < PATIENCE * 1.1, "of each second, all of them together"
        asked.clear()
        now += 1.0


def test_a_warning_waits_for_room_that_comes_soon(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.fill()
    monkeypatch.setattr(log_worker, "PATIENCE", 20.0)
    line.handler._patience = Patience()
    found: list[Sent] = []
    reader = threading.Timer(0.05, lambda: found.extend(line.records()))
    reader.start()
    line.log.warning("important")
    reader.join()
    assert line.handler.dropped == 0
    assert [*found, *line.records()][-1].message == "important"


def test_patience_is_so_much_per_period_and_half_for_minor_records() -> None:
    now = 100.0
    patience = Patience(lambda: now)
    assert (patience.left(logging.INFO), patience.left(logging.WARNING)) == (PATIENCE / 2, PATIENCE)
    patience.use(PATIENCE / 2)
    assert (patience.left(logging.INFO), patience.left(logging.WARNING)) == (0, PATIENCE / 2)
    now = 100.9
    assert patience.left(logging.INFO) == 0
    now = 101.0
    assert patience.left(logging.INFO) == PATIENCE / 2


def test_nobody_reads_any_more_and_nothing_happens(line: Line) -> None:
    line.reading.close()
    line.log.error("to nobody")
    assert line.handler.dropped == 1


class Chatty:
    def __init__(self, log: logging.Logger) -> None:
        self.log = log

    def __str__(self) -> str:
        self.log.warning("%s", self)
        return "chatty"


@pytest.mark.parametrize("told", [True, False])
def test_a_record_that_cannot_be_made_is_reported_as_logging_does(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: bool
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", told)
    line.log.warning("%d", "no number")
    assert ("not all arguments" in (err := capsys.readouterr().err) or "%d format" in err) is told
    line.log.warning("fine")
    assert [record.message for record in line.records()] == ["fine"]


def test_a_value_that_logs_itself_for_ever_ends_somewhere(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    line.log.warning("%s", Chatty(line.log))
    line.packets()
    line.log.warning("fine")
    assert [record.message for record in line.records()] == ["fine"]


def test_records_of_many_threads_are_whole(line: Line) -> None:
    found: list[str] = []
    told: list[int] = []
    over = threading.Event()

    def take() -> None:
        for packet in line.packets():
            told.append(packet.dropped)
            if packet.record is not None:
                found.append(packet.record.message)

    def read() -> None:
        while not over.is_set():
            take()

    reader = threading.Thread(target=read)
    reader.start()

    def write(n: int) -> None:
        for i in range(200):
            line.log.warning("%d %d %s", n, i, "x" * 500)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    over.set()
    reader.join()
    take()
    assert len(found) + sum(told) + line.handler.dropped == 800
    for n in range(4):
        numbers = [int(text.split()[1]) for text in found if text.startswith(f"{n} ")]
        assert numbers == sorted(set(numbers))


def test_a_signal_handler_may_log_while_a_record_is_written(line: Line) -> None:
    hits: list[int] = []
    numbers = itertools.count()

    depth = 0

    def heard(number: int, frame: object) -> None:
        nonlocal depth
        hits.append(next(numbers))
        depth += 1
        if depth < 3:  # it may interrupt itself, and on a machine that is slow would never end if it always did
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
        line.log.warning("signal %d", hits[-1])
        depth -= 1
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, heard)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        count = 0
        found: list[str] = []
        while len(hits) < 100:
            line.log.warning("loop %d", count)
            count += 1
            found += [record.message for record in line.records()]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found += [record.message for record in line.records()]
    assert [text for text in found if text.startswith("loop")] == [f"loop {n}" for n in range(count)]
    assert sum(text.startswith("signal") for text in found) == len(hits)


def test_a_process_forked_by_user_code_logs_on_and_tells_of_its_own_drops_only(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_worker, "_installed", line.handler)
    line.handler.dropped = 7
    pid = os.fork()
    if pid == 0:
        line.log.warning("from the child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    (packet,) = line.packets()
    assert packet.record is not None
    assert (packet.dropped, packet.record.process, packet.record.message) == (0, pid, "from the child")
    assert line.handler.dropped == 7


def test_levels_of_the_program_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, level, disabled in [("one.a", logging.DEBUG, False), ("one.b", logging.NOTSET, True)]:
        monkeypatch.setattr(logging.getLogger(name), "level", level)
        monkeypatch.setattr(logging.getLogger(name), "disabled", disabled)
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    levels = Levels.of_program()
    assert dict(levels.levels)[""] == logging.ERROR
    assert dict(levels.levels)["one.a"] == logging.DEBUG
    assert "one.b" not in dict(levels.levels)
    assert "one.b" in levels.disabled
    for name in ("", "one.a", "one.b"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    levels.apply()
    assert logging.root.level == logging.ERROR
    assert logging.getLogger("one.a").level == logging.DEBUG
    assert logging.getLogger("one.b").disabled
