"""A log record on its way: from a worker as one packet, into the log file as one line of JSON, to people as text.

    packet  what a worker sends: how many records it had to drop before, and a record; at most PACKET bytes
    line    what the file keeps and `ringleader logs --json` shows: one JSON object with the keys of `Line`
    text    12:03:04.567 WARNING stats/averager ingest/123: what was said

A packet is whole or not there: one datagram. What does not fit is cut, with a mark that says how much there was; the
values of `extra=` go first. Values that are no plain data travel as their `repr`, cut. What another process sent is
checked when it is decoded, and control characters of a message never reach a terminal.

Pure: nothing here knows a socket, a file or a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

PACKET = 64 << 10  # bytes of one record on its way
REPR = 200  # characters of a value that is no plain data
DEPTH = 8  # of lists and maps within each other
RUNTIME = "ringleader"  # the logger of the runtime itself

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


class Sent(msgspec.Struct, array_like=True, gc=False):
    """A record as its worker sends it: everything that only the worker can know is text already."""

    name: str
    level: int
    level_name: str
    message: str
    created: float  # seconds since 1970
    process: int
    thread: int
    thread_name: str
    path: str
    line: int
    function: str
    handler: str = ""  # at work when it was written
    message_id: str = ""  # being handled then
    traceback: str = ""
    stack: str = ""
    task: str = ""
    extra: dict[str, Any] = {}


class Packet(msgspec.Struct, array_like=True, gc=False):
    """`dropped`: records of this process that found no room since its packet before."""

    dropped: int
    record: Sent | None = None


class Line(msgspec.Struct, kw_only=True):
    """One record in the log file. The keys are stable; new ones may be added at the end."""

    time: str  # ISO 8601, UTC, milliseconds
    level: str
    logger: str
    worker: str = ""  # empty: the supervisor
    handler: str = ""
    message_id: str = ""
    pid: int = 0
    message: str = ""
    traceback: str = ""
    extra: dict[str, Any] = {}

    @property
    def number(self) -> int:
        """The level as a number; one with an unknown name counts as a warning, which nobody misses."""
        name = self.level.lower()
        if name.startswith("level "):
            name = name[6:]
        return int(name) if name.isascii() and name.isdigit() else LEVELS.get(name, 30)


_packet_encoder = msgspec.msgpack.Encoder()
_packet_decoder = msgspec.msgpack.Decoder(Packet)
_line_encoder = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(Line)


# ------------------------------------------------------------------------------------------------------------ packets
def encode(packet: Packet, limit: int = PACKET) -> bytes:
    """At most `limit` bytes, whatever was said."""
    try:
        data = _packet_encoder.encode(packet)
    except Exception:  # a number beyond 64 bits, half a surrogate pair, an object: the exact way is the slow one
        packet = _tamed(packet)
        data = _packet_encoder.encode(packet)
    if len(data) <= limit or packet.record is None:
        return data
    record = packet.record
    mark = f"[{len(data)} bytes were too many]"
    room = limit // 4
    short = msgspec.structs.replace(
        record,
        name=cut(record.name, limit // 64),
        level_name=cut(record.level_name, limit // 64),
        thread_name=cut(record.thread_name, limit // 64),
        task=cut(record.task, limit // 64),
        path=cut(record.path, limit // 32),
        function=cut(record.function, limit // 64),
        handler=cut(record.handler, limit // 64),
        message_id=cut(record.message_id, limit // 64),
        message=cut(record.message, room, mark),
        traceback=cut(record.traceback, room, mark, keep_end=True),
        stack=cut(record.stack, room // 2, mark, keep_end=True),
        extra={},
    )
    whole = msgspec.structs.replace(short, extra=record.extra)
    data = _packet_encoder.encode(Packet(packet.dropped, whole))
    if len(data) <= limit:
        return data
    return _packet_encoder.encode(Packet(packet.dropped, msgspec.structs.replace(short, extra={"cut": mark})))


def decode(data: bytes) -> Packet:
    """Raises msgspec.DecodeError (a ValueError) for what is no packet."""
    return _packet_decoder.decode(data)


def cut(text: str, size: int, mark: str = "", *, keep_end: bool = False) -> str:
    """A text of at most `size` bytes in UTF-8, and the mark. The end of a traceback says more than its beginning."""
    data = text.encode("utf-8", "replace")
    if len(data) <= size:
        return text
    if keep_end:
        return f"... {mark} " + data[-size:].decode("utf-8", "ignore")
    return data[:size].decode("utf-8", "ignore") + f" ... {mark}"


def plain(value: Any, depth: int = DEPTH) -> Any:
    """The value as data that any encoding carries; what is none as its `repr`, cut."""
    if value is None or isinstance(value, bool):
        return value
    kind = type(value)
    if kind is str:
        return _whole(value)
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else shown(value)
    if kind is float:
        return value if math.isfinite(value) else repr(value)
    if depth > 0 and kind in {list, tuple}:
        return [plain(one, depth - 1) for one in value]
    if depth > 0 and kind is dict:
        return {_whole(key) if type(key) is str else shown(key): plain(one, depth - 1) for key, one in value.items()}
    return shown(value)


def shown(value: Any) -> str:
    """The value's `repr`, cut; a class whose `repr` fails is named."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return _whole(cut(text, REPR))


def _whole(text: str) -> str:
    """Half a surrogate pair, which no encoding carries, as what would be written for it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _tamed(packet: Packet) -> Packet:
    record = packet.record
    assert record is not None
    values = {key: plain(getattr(record, key)) for key in Sent.__struct_fields__}
    return Packet(packet.dropped, Sent(**values))


# -------------------------------------------------------------------------------------------------------------- lines
def line_of(sent: Sent, worker: str) -> Line:
    return Line(
        time=iso(sent.created),
        level=sent.level_name,
        logger=sent.name,
        worker=worker,
        handler=sent.handler,
        message_id=sent.message_id,
        pid=sent.process,
        message=sent.message,
        traceback="\n".join(part for part in (sent.traceback, sent.stack) if part),
        extra=sent.extra,
    )


def iso(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00.000Z"  # a clock, or a packet, that cannot be


def encode_line(line: Line) -> bytes:
    """With its newline, and no other one in it."""
    try:
        return _line_encoder.encode(line) + b"\n"
    except Exception:
        values: Mapping[str, Any] = {key: plain(getattr(line, key)) for key in Line.__struct_fields__}
        return _line_encoder.encode(values) + b"\n"


def decode_line(data: bytes) -> Line | None:
    """None for what is no line: the torn end of a file after a crash, or something else in its place."""
    try:
        return _line_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


# --------------------------------------------------------------------------------------------------------------- text
def text_of(line: Line, now: datetime | None = None) -> str:
    """For people, in local time; with the date where it is not that of `now`. One record may be several lines, of which
    all but the first are indented: a message can look like another record to nobody."""
    try:
        moment = datetime.fromisoformat(line.time).astimezone()
        clock = moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
        if now is not None and moment.date() != now.astimezone().date():
            clock = f"{moment:%Y-%m-%d} {clock}"
    except (ValueError, OverflowError, OSError):
        clock = harmless(line.time)
    who = "/".join(part for part in (line.worker, line.handler) if part)
    who = who or ("supervisor" if line.logger == RUNTIME else line.logger)
    head = " ".join(part for part in (clock, line.level, who, line.message_id) if part)
    body = f"{line.message}\n{line.traceback}" if line.traceback else line.message
    first, *rest = harmless(body).rstrip("\n").split("\n")
    return "\n".join([f"{harmless(head)}: {first}", *(f"    {one}" for one in rest)])


def harmless(text: str) -> str:
    """Without control characters, which a terminal would obey; they are shown as escapes. Newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode("ascii")
        for one in text.replace("\r\n", "\n")
    )


def level_number(text: str) -> int:
    """`warning`, `WARNING`, `30`. Raises ValueError for anything else."""
    name = text.strip().lower()
    if name in LEVELS:
        return LEVELS[name]
    if name.isascii() and name.isdigit():
        return int(name)
    raise ValueError(f"{text!r} is no level: take {', '.join(LEVELS)}, or a number")
