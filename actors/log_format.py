"""Log records of workers as records of the program, and records of the program as lines: for people, for programs.

A record that comes from a worker has what every record has (time, process and thread are the worker's; the traceback is
text), the values of `extra=`, and besides

    record.worker       the worker                          record.handler     the handler at work; empty if none was
    record.system       the system                          record.message_id  of the message being handled, or empty

A user's `extra=` of one of these names takes its place; `record.ringleader` has all four in any case (`Origin`). A
record of the program itself has none of them: `logging.Formatter(..., defaults={"worker": "-"})` formats both kinds.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any, NamedTuple

import msgspec

from actors.events import Event
from actors.log_record import RUNTIME, Line, Sent, encode_line, iso, plain, text_of
from actors.log_worker import STANDARD


class Origin(NamedTuple):
    """Where a record comes from."""

    system: str
    worker: str
    handler: str
    message_id: str


_OURS = frozenset((*Origin._fields, "ringleader"))


def record_of(sent: Sent, system: str, worker: str) -> logging.LogRecord:
    """What a worker sent, as a record of this process."""
    make = logging.getLogRecordFactory()
    record = make(
        sent.name, sent.level, sent.path, sent.line, sent.message, (), None, sent.function, sent.stack or None
    )
    origin = Origin(system, worker, sent.handler, sent.message_id)
    values: dict[str, Any] = {
        **origin._asdict(),
        **{key: value for key, value in sent.extra.items() if key not in STANDARD},
        "ringleader": origin,
        "created": sent.created,
        "msecs": float(int((sent.created - int(sent.created)) * 1000)),
        "relativeCreated": record.relativeCreated + (sent.created - record.created) * 1000,
        "process": sent.process,
        "processName": f"{system}/{worker}",
        "thread": sent.thread,
        "threadName": sent.thread_name,
        "taskName": sent.task or None,
        "exc_text": sent.traceback or None,
    }
    if record.levelname == f"Level {sent.level}":
        values["levelname"] = sent.level_name  # its name is known in the worker only
    vars(record).update(values)
    return record


def line_of_record(record: logging.LogRecord) -> Line:
    """Any record of this process as a line; `record_of` the other way round."""
    event = getattr(record, "event", None)
    if isinstance(event, Event) and record.name == RUNTIME:
        return line_of_event(event, record.created)
    origin = getattr(record, "ringleader", None)
    if not isinstance(origin, Origin):
        origin = Origin("", "", "", "")
    mine = {name: value for name, value in origin._asdict().items() if value}
    trace = record.exc_text or (logging.Formatter().formatException(record.exc_info) if record.exc_info else "")
    return Line(
        time=iso(record.created),
        level=record.levelname,
        logger=record.name,
        worker=origin.worker,
        handler=origin.handler,
        message_id=origin.message_id,
        pid=record.process or 0,
        message=record.getMessage(),
        traceback="\n".join(part for part in (trace, record.stack_info) if part),
        extra={
            key: plain(value)
            for key, value in vars(record).items()
            if key not in STANDARD and key != "ringleader" and not (key in _OURS and mine.get(key, "") == value)
        },
    )


def line_of_event(event: Event, moment: float | None = None) -> Line:
    """What the supervisor says; `worker` is the one that it speaks of, `extra` the event's own record."""
    fields = event.record()
    try:
        extra = msgspec.to_builtins(fields, str_keys=True)
    except Exception:
        extra = plain(fields)
    return Line(
        time=iso(time.time() if moment is None else moment),
        level=logging.getLevelName(event.level),
        logger=RUNTIME,
        worker=str(fields.get("name", "")),
        pid=os.getpid(),
        message=event.text(),
        extra=extra,
    )


class TextFormatter(logging.Formatter):
    """As `ringleader logs` shows records: one line for people, and indented lines for tracebacks."""

    def __init__(self) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        return text_of(line_of_record(record))


class JsonFormatter(logging.Formatter):
    """As `ringleader logs --json` shows records: one JSON object per record, with stable keys."""

    def __init__(self) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        return encode_line(line_of_record(record)).decode().rstrip("\n")


def configure(level: int, json: bool) -> bool:
    """Log to stderr, unless the program has configured logging itself: then False, and nothing was changed."""
    root = logging.getLogger()
    if root.handlers:
        return False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root.addHandler(handler)
    root.setLevel(level)
    return True
