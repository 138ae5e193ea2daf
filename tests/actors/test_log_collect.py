"""The collector, with channels whose other end is in this process."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import log_collect
from actors.events import WorkerDied
from actors.log_collect import Collector
from actors.log_file import LOG, LogFile
from actors.log_format import JsonFormatter, Origin, TextFormatter, configure
from actors.log_record import Packet, Sent, encode
from tests.actors.waiting import until


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


class Collected:
    """A running collector, and loggers below `app` that keep what they get."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.collector = Collector("trades", LogFile(os.open(folder, os.O_RDONLY), 1 << 20))
        self.kept = Kept()
        self.ends: list[socket.socket] = []
        self.collector.start()

    def worker(self, name: str) -> socket.socket:
        with self.collector.channel(name) as descriptor:
            self.ends.append(socket.socket(fileno=os.dup(descriptor)))
        return self.ends[-1]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()] if self.path.exists() else []

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.collector.close()


@pytest.fixture
def collected(tmp_path: Path) -> Iterator[Collected]:
    one = Collected(tmp_path)
    log = logging.getLogger("app")
    log.addHandler(one.kept)
    logging.getLogger("ringleader").addHandler(one.kept)
    yield one
    one.close()
    log.removeHandler(one.kept)
    logging.getLogger("ringleader").removeHandler(one.kept)


def packet(message: str, dropped: int = 0, name: str = "app.trades", level: int = 30, **extra: Any) -> bytes:
    record = Sent(name, level, "WARNING", message, 1700000000.25, 7, 8, "T", "/src/feed.py", 12, "on_trade")
    record.handler, record.message_id, record.traceback, record.extra = "averager", "ingest/3", "Trace", extra
    return encode(Packet(dropped, record))


def test_a_record_reaches_the_program_with_where_it_comes_from(collected: Collected) -> None:
    collected.worker("stats").send(packet("100 %s", symbol="ACME"))
    until(lambda: collected.kept.records, "the record")
    (record,) = collected.kept.records
    facts: Any = record
    assert (facts.worker, facts.handler, facts.message_id, facts.system) == ("stats", "averager", "ingest/3", "trades")
    assert (record.name, record.levelname, record.getMessage(), record.created) == (
        *("app.trades", "WARNING", "100 %s"),
        1700000000.25,
    )
    assert (record.process, record.processName, record.thread, record.threadName) == (7, "trades/stats", 8, "T")
    assert (record.filename, record.module, record.lineno, record.funcName) == ("feed.py", "feed", 12, "on_trade")
    assert facts.symbol == "ACME"
    assert logging.Formatter("%(worker)s %(message)s").format(record) == "stats 100 %s\nTrace"
    assert TextFormatter().format(record).endswith("WARNING stats/averager ingest/3: 100 %s\n    Trace")
    until(collected.lines, "the file")
    assert collected.lines() == [json.loads(JsonFormatter().format(record))]


def test_extra_of_the_user_takes_the_place_of_ours_which_remain(collected: Collected) -> None:
    collected.worker("stats").send(packet("x", worker="mine", name_="n", args="a", levelno=1))
    until(lambda: collected.kept.records, "the record")
    facts: Any = collected.kept.records[0]
    assert (facts.worker, facts.args, facts.levelno) == ("mine", (), 30)
    assert facts.ringleader == Origin("trades", "stats", "averager", "ingest/3")
    assert json.loads(JsonFormatter().format(facts))["extra"] == {"worker": "mine", "name_": "n"}


def test_where_no_logging_is_configured_no_line_of_a_worker_looks_like_another_record(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    sent = Sent("bare", 30, "WARNING", "one\nother: forged\r\n\x1b[2J", 0.0, 7, 8, "T", "/src/feed.py", 12, "on_trade")
    sent.traceback, sent.stack = "Traceback:\nValueError: x\nother: forged", "Stack:\nother: forged"
    collected.worker("stats").send(encode(Packet(0, sent)))
    until(collected.lines, "the file")
    collected.collector.close()
    assert capsys.readouterr().err.splitlines() == [
        *("stats: one", "    other: forged", "    \\x1b[2J"),
        *("    Traceback:", "    ValueError: x", "    other: forged"),
        *("    Stack:", "    other: forged"),
    ]


def test_levels_of_the_program_hold_as_they_are_now(collected: Collected) -> None:
    end = collected.worker("stats")
    logging.getLogger("app.trades").setLevel(logging.ERROR)
    try:
        end.send(packet("too low"))
        end.send(packet("high enough", level=40))
        until(lambda: collected.kept.records, "the record")
    finally:
        logging.getLogger("app.trades").setLevel(logging.NOTSET)
    assert collected.kept.messages == ["high enough"]
    until(lambda: len(collected.lines()) == 2, "both in the file")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [RuntimeError("broken filter"), SystemExit(1)])
def test_a_handler_of_the_program_that_fails_harms_nothing(
    collected: Collected, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise error

    end = collected.worker("stats")
    collected.kept.addFilter(refuse)
    end.send(packet("one"))
    until(collected.lines, "the file")
    collected.kept.removeFilter(refuse)
    end.send(packet("two"))
    until(lambda: "two" in collected.kept.messages, "the next record")
    assert type(error).__name__ in capsys.readouterr().err


def test_packets_that_are_none_are_counted_and_told(collected: Collected) -> None:
    end = collected.worker("stats")
    for data in (b"rubbish", packet("fine")[:-3], b"\xc1", packet("fine")):
        end.send(data)
    until(lambda: len(collected.kept.records) >= 2, "what is fine")
    end.close()
    until(lambda: sum("packets were no log records" in text for text in collected.kept.messages) >= 1, "the count")
    assert "fine" in collected.kept.messages


def test_what_a_worker_dropped_is_told(collected: Collected) -> None:
    end = collected.worker("stats")
    end.send(packet("after", dropped=23))
    until(lambda: len(collected.kept.records) == 2, "two records")
    facts: Any = collected.kept.records[1]
    assert collected.kept.messages == [
        "after",
        "23 records were dropped: they came faster than they could be taken",
    ]
    assert (facts.name, facts.worker, facts.levelno) == ("ringleader", "stats", logging.WARNING)


def test_a_program_without_logging_gets_warnings_on_stderr_with_the_worker_in_front(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    end = collected.worker("stats")
    for level in (20, 30):
        end.send(packet(f"level {level}", name="elsewhere", level=level))
    until(lambda: len(collected.lines()) == 2, "the file")
    collected.collector.close()
    assert capsys.readouterr().err == "stats/averager: level 30\n    Trace\n"


def test_what_is_left_of_an_incarnation_is_read_though_somebody_keeps_its_channel(collected: Collected) -> None:
    held = threading.Event()
    collected.kept.addFilter(lambda record: held.wait(10))
    collected.worker("ingest").send(packet("holds up the collector"))
    first = collected.worker("stats")
    for n in range(100):
        first.send(packet(f"first {n}"))
    second = collected.worker("stats")
    second.send(packet("second"))
    held.set()
    until(lambda: "second" in collected.kept.messages, "the second")
    assert [text for text in collected.kept.messages if "first" in text] == [f"first {n}" for n in range(100)]
    until(lambda: _refused(first), "the end of the first")


def _refused(end: socket.socket) -> bool:
    try:
        end.send(packet("late"), socket.MSG_DONTWAIT)
    except BrokenPipeError:
        return True
    return False


def test_what_is_left_at_the_end_is_taken(collected: Collected) -> None:
    held = threading.Event()
    collected.kept.addFilter(lambda record: held.wait(10))
    ends = [collected.worker(f"w{n}") for n in range(5)]
    for end in ends:
        for n in range(20):
            end.send(packet(f"{n}"))
    held.set()
    collected.collector.close()
    assert len(collected.kept.records) == 100
    assert len(collected.lines()) == 100
    collected.collector.close()


def test_a_handler_that_never_returns_does_not_hold_up_the_end(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_collect, "CLOSING", 0.05)
    held, inside = threading.Event(), threading.Event()

    def hold(record: logging.LogRecord) -> bool:
        inside.set()
        return held.wait(60)

    collected.kept.addFilter(hold)
    collected.worker("stats").send(packet("x"))
    assert inside.wait(10)
    closing = threading.Thread(target=collected.collector.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    held.set()


def test_channels_leave_no_descriptors(collected: Collected) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(100):
        collected.worker("stats").close()
    with pytest.raises(RuntimeError), collected.collector.channel("stats"):
        raise RuntimeError("the launch failed")
    until(lambda: descriptors() == before, "the descriptors")


def test_events_of_the_supervisor_are_kept_and_passed_on(collected: Collected) -> None:
    seen: list[object] = []
    event = WorkerDied("stats", 7, 2, "killed by SIGKILL", (1, 5))
    collected.collector.observer(seen.append)(event)
    assert seen == [event]
    until(collected.lines, "the file")
    (line,) = collected.lines()
    assert (line["logger"], line["worker"], line["level"]) == ("ringleader", "stats", "WARNING")
    assert line["message"] == event.text()
    assert line["extra"] == {
        "event": "WorkerDied",
        "name": "stats",
        "pid": 7,
        "epoch": 2,
        "reason": "killed by SIGKILL",
        "blamed": [1, 5],
        "message": "",
    }


def test_lines_that_could_not_be_written_are_told_when_there_is_room(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = collected.worker("stats")
    with monkeypatch.context() as full:
        full.setattr(LogFile, "_append", lambda self, data: (_ for _ in ()).throw(OSError(28, "no space")))
        end.send(packet("one"))
        until(lambda: collected.kept.messages == ["one"], "the record")
    end.send(packet("two"))
    until(lambda: len(collected.lines()) == 2, "the file")
    assert [line["message"] for line in collected.lines()] == ["two", "1 records could not be written to this file"]


def test_logging_is_configured_only_where_the_program_has_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not configure(logging.INFO, json=False), "pytest has"
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    assert configure(logging.INFO, json=True)
    logging.getLogger("somewhere").info("hello", extra={"n": 1})
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["logger"], line["worker"], line["extra"]) == ("hello", "somewhere", "", {"n": 1})
