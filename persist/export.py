"""A journal as plain records for programs: one JSON object each, with stable keys and units.

Payloads (bodies, states, keys and values of tables, tracebacks) are only there with `payloads=True`; otherwise their
sizes are. JSON keys that are not there have their default: 0, false, empty.
"""

from __future__ import annotations

import contextlib
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import msgspec

from persist.errors import DamagedJournal, PersistError
from persist.files import Directory
from persist.format import SEGMENT_HEADER, segment_name, segment_number
from persist.history import Record, SentRun, replay, tail
from persist.history_cursor import head, verified_frames
from persist.reader import Segment, survey
from persist.recovery import NamedDeadLetter, by_name


class ExportedRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Messages `first[peer]` to `first[peer] + count - 1` to each peer. `lost`: only a place holder is left of them."""

    source: str  # handler
    type: str
    count: int
    first: dict[str, int]
    size_bytes: int
    flags: int = 0
    lost: bool = False
    body_base64: str | None = None


class ExportedState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    handler: str
    size_bytes: int
    value_base64: str | None = None


class ExportedKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    handler: str
    key_size_bytes: int
    size_bytes: int = 0
    removed: bool = False
    key_base64: str | None = None
    value_base64: str | None = None


class ExportedDeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str  # peer/seq
    source: str
    handler: str
    type: str
    size_bytes: int
    reason: str
    attempts: int
    time: str  # ISO 8601, UTC
    time_unix_seconds: float
    detail: str = ""
    body_base64: str | None = None


class ExportedTransaction(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="transaction"
):
    """`consumed`: peer -> watermark; `dead_letters_removed`: ids; `attempts`: id -> how often it was tried in vain."""

    position: int
    end_position: int
    segment: int
    epoch: int
    consumed: dict[str, int] = {}
    sends: list[ExportedRun] = []
    states: list[ExportedState] = []
    keys: list[ExportedKey] = []
    dead_letters: list[ExportedDeadLetter] = []
    dead_letters_removed: list[str] = []
    attempts: dict[str, int] = {}


class ExportedSegment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="segment"):
    """A segment and the snapshot that it begins with. `begun` is not known of segments of format version 1."""

    number: int
    file: str
    first_position: int
    records_position: int  # behind the snapshot
    epoch: int
    level: str
    fingerprint: str
    peers: list[str]
    handlers: list[str]
    routes: list[tuple[str, str]]  # source handler, message type
    begun: str | None = None  # ISO 8601, UTC
    begun_unix_seconds: float = 0.0
    watermarks: dict[str, int] = {}
    assigned: dict[str, int] = {}
    acked: dict[str, int] = {}
    states: list[ExportedState] = []
    keys: list[ExportedKey] = []
    dead_letters: int = 0


class SegmentStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file. `size_bytes`: of its good frames with the header; `reserved_bytes`: what the file has beyond that;
    `frames`: with the snapshot. `problem` says why the rest is missing."""

    number: int
    file: str
    first_position: int = 0
    end_position: int = 0
    size_bytes: int = 0
    reserved_bytes: int = 0
    frames: int = 0
    epoch: int = 0
    begun: str | None = None
    begun_unix_seconds: float = 0.0
    problem: str = ""


def export(
    directory: str | os.PathLike[str],
    from_position: int = 0,
    *,
    payloads: bool = False,
    follow: bool = False,
    timeout: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[ExportedSegment | ExportedTransaction]:
    """The history from a position on: each segment, then its transactions. Raises what `replay` and `tail` do."""
    opened = Directory(directory, create=False)
    try:
        read = partial(tail, timeout=timeout, stop=stop) if follow else replay
        shown = 0
        for record in read(opened, from_position):
            if record.segment > shown:
                for number in range(shown + 1 if shown else record.segment, record.segment + 1):
                    yield from _exported_segment(opened, number, payloads)
                shown = record.segment
            yield exported(record, payloads=payloads)
        if not follow and (shown or not from_position):
            for number in sorted(n for name in opened.list() if (n := segment_number(name)) is not None and n > shown):
                yield from _exported_segment(opened, number, payloads)
    finally:
        opened.close()


def exported(record: Record, *, payloads: bool = False) -> ExportedTransaction:
    return ExportedTransaction(
        position=record.position,
        end_position=record.end,
        segment=record.segment,
        epoch=record.epoch,
        consumed=record.consumed,
        sends=[_run(run, payloads) for run in record.sends],
        states=_states(record.states, payloads),
        keys=[_key(*row, payloads) for row in record.keys],
        dead_letters=[_letter(letter, payloads) for letter in record.dead],
        dead_letters_removed=[f"{peer}/{seq}" for peer, seq in record.removed],
        attempts={f"{peer}/{seq}": count for (peer, seq), count in record.attempts.items()},
    )


def segments(directory: str | os.PathLike[str]) -> list[SegmentStatus]:
    """Every segment file, whatever is wrong with it; the journal may be written to meanwhile."""
    opened = Directory(directory, create=False)
    try:
        faults: list[PersistError] = []
        found = survey(opened, faults)
        listed: dict[str, SegmentStatus] = {}
        for segment in found.segments:
            status = _segment_status(opened, segment, last=segment.number == found.last)
            if status is not None:
                listed[status.file] = status
        problems = [(getattr(fault, "path", ""), str(fault)) for fault in faults]
        if found.torn is not None:
            problems.append((found.torn.file, f"only begun: {found.torn.reason}"))
        for path, problem in problems:
            status = listed.get(path) or SegmentStatus(number=int(os.path.basename(path)[:20]), file=path)
            listed[path] = msgspec.structs.replace(status, problem=status.problem or problem)
        return sorted(listed.values(), key=lambda one: one.number)
    finally:
        opened.close()


def _segment_status(directory: Directory, segment: Segment, *, last: bool) -> SegmentStatus | None:
    """None if it was trimmed meanwhile."""
    frames, end, problem = 1, segment.body, ""
    try:
        with contextlib.closing(directory.open(segment.name)) as file:
            size = file.size()
            try:
                for frame in verified_frames(directory, segment, file, segment.body, last=last):
                    frames += 1
                    end = frame.end
            except DamagedJournal as fault:
                problem = str(fault)
    except FileNotFoundError:
        return None
    begun, seconds = _time(segment.snapshot.time_ns)
    return SegmentStatus(
        number=segment.number,
        file=segment.path,
        first_position=segment.first_position,
        end_position=end,
        size_bytes=end - segment.first_position + SEGMENT_HEADER,
        reserved_bytes=0 if problem else max(0, size - segment.offset(end)),
        frames=frames,
        epoch=segment.epoch,
        begun=begun,
        begun_unix_seconds=seconds,
        problem=problem,
    )


def _exported_segment(directory: Directory, number: int, payloads: bool) -> Iterator[ExportedSegment]:
    """Nothing for one that was trimmed meanwhile, or cannot be read."""
    try:
        segment = head(directory, segment_name(number))
    except (PersistError, FileNotFoundError):
        return
    if segment is None:
        return
    snapshot = segment.snapshot
    begun, seconds = _time(snapshot.time_ns)
    states = {snapshot.handlers[handler]: value for handler, value in snapshot.states}
    yield ExportedSegment(
        number=number,
        file=segment.path,
        first_position=segment.first_position,
        records_position=segment.body,
        epoch=segment.epoch,
        level=snapshot.level,
        fingerprint=snapshot.fingerprint,
        peers=snapshot.peers,
        handlers=snapshot.handlers,
        routes=snapshot.routes,
        begun=begun,
        begun_unix_seconds=seconds,
        watermarks=by_name(snapshot.peers, snapshot.watermarks),
        assigned=by_name(snapshot.peers, snapshot.assigned),
        acked=by_name(snapshot.peers, snapshot.acked),
        states=_states(states, payloads),
        keys=[_key(snapshot.handlers[handler], key, value, payloads) for handler, key, value in snapshot.tables],
        dead_letters=len(snapshot.dead),
    )


def _run(run: SentRun, payloads: bool) -> ExportedRun:
    return ExportedRun(
        source=run.route[0],
        type=run.route[1],
        count=run.count,
        first=run.edges,
        size_bytes=len(run.body),
        flags=run.flags,
        lost=run.lost,
        body_base64=_base64(run.body, payloads),
    )


def _states(states: dict[str, bytes], payloads: bool) -> list[ExportedState]:
    return [
        ExportedState(handler=handler, size_bytes=len(value), value_base64=_base64(value, payloads))
        for handler, value in states.items()
    ]


def _key(handler: str, key: bytes, value: bytes | None, payloads: bool) -> ExportedKey:
    return ExportedKey(
        handler=handler,
        key_size_bytes=len(key),
        size_bytes=len(value or b""),
        removed=value is None,
        key_base64=_base64(key, payloads),
        value_base64=_base64(value, payloads),
    )


def _letter(letter: NamedDeadLetter, payloads: bool) -> ExportedDeadLetter:
    time, seconds = _time(letter.time_ns)
    return ExportedDeadLetter(
        id=f"{letter.peer}/{letter.seq}",
        source=letter.route[0],
        handler=letter.handler,
        type=letter.type,
        size_bytes=len(letter.body),
        reason=letter.reason,
        attempts=letter.attempts,
        time=time or "",
        time_unix_seconds=seconds,
        detail=letter.detail if payloads else "",
        body_base64=_base64(letter.body, payloads),
    )


def _base64(data: bytes | None, payloads: bool) -> str | None:
    return b64encode(data).decode() if payloads and data is not None else None


def _time(time_ns: int) -> tuple[str | None, float]:
    if not time_ns:
        return None, 0.0
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds"), time_ns / 1e9
