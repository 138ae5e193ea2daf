"""Finds the journals that a user means, and looks at them from outside: what is pending, whether they are sound.

Nothing here takes a lock or changes anything, so a system may run meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from actors.errors import RingleaderError
from actors.plan import GATEWAY
from actors.rundir import IDENTITY, JOURNALS, RunDirectory, RunDirectoryError, lock_holder
from actors.status import locate, read_status
from actors.status_types import Condition
from persist import DamagedJournal, PersistError, Recovered, Report, check, read
from persist.export import SegmentStatus, segments
from persist.format import segment_number
from persist.load import READ_ATTEMPTS
from persist.lock import NAME as LOCK
from persist.repair import Elsewhere

READINGS = 20  # of a journal that is written to: a fault that two readings in a row agree on is one
BETWEEN_READINGS = 0.02


class CannotFind(RingleaderError):
    """There are no such journals, or they may not be looked at; `code` is the exit status for that."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why, code)
        self.why, self.code = why, code

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True, slots=True)
class Found:
    """The journals of a system (those of workers that the topology no longer has come last), or a single one that
    belongs to none: then `run` is None."""

    name: str
    run: Path | None
    journals: dict[str, Path]  # worker -> directory
    all: dict[str, Path]  # those of the whole system
    running: bool = False


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent to one peer. `received` is as its own journal says, or else as far as this one knows."""

    peer: str
    assigned: int
    received: int
    pending_messages: int


class JournalStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One journal. `in_use_by`: the process that writes to it; `problem`: why recovery refuses it."""

    worker: str
    directory: str
    segments: list[SegmentStatus]
    size_bytes: int
    frames: int
    oldest_position: int = 0
    end_position: int = 0
    in_use_by: int | None = None
    peers: list[PeerStatus] = []
    problem: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wrong with one journal. `torn_tail` is what a crash left, and no fault."""

    worker: str
    directory: str
    ok: bool
    segments: int
    frames: int
    size_bytes: int
    in_use_by: int | None = None
    torn_tail: str = ""
    faults: list[str] = []
    gaps: list[str] = []


def find(place: str, worker: str | None, home: Path | None) -> Found:
    """`place`: the name of a system, a run directory, or the directory of a journal. CannotFind if there is none."""
    path = locate(place, home)
    if not os.path.lexists(path / IDENTITY):
        alone = Path(os.path.abspath(place))
        if _is_journal(alone):
            return _alone(alone, worker)
    return _of_system(place, path, worker, home)


def status(found: Found, worker: str) -> JournalStatus:
    """OSError if the directory cannot be read."""
    path = found.journals[worker]
    listed = segments(path)
    problem = ""
    peers: list[PeerStatus] = []
    try:
        peers = _peers(worker, _look(path), _others(found, worker))
    except (PersistError, FileNotFoundError) as error:
        problem = str(error)
    return JournalStatus(
        worker=worker,
        directory=str(path),
        segments=listed,
        size_bytes=sum(one.size_bytes for one in listed),
        frames=sum(one.frames for one in listed),
        oldest_position=next((one.first_position for one in listed if one.frames), 0),
        end_position=max((one.end_position for one in listed), default=0),
        in_use_by=writer(path),
        peers=peers,
        problem=problem,
    )


def verify(worker: str, path: Path) -> Verdict:
    """A journal that is written to cannot be read in one instant, so what a single reading finds there may only be what
    was being written. What two readings in a row find is there."""
    report, found = _checked(path), set[str]()
    faults, gaps = report.faults, report.gaps
    for _ in range(READINGS):
        if not (faults or gaps) or writer(path) is None:
            break
        before, found = found, {_what(fault) for fault in report.faults} | set(report.gaps)
        faults = [fault for fault in report.faults if _what(fault) in before]
        gaps = [gap for gap in report.gaps if gap in before]
        if faults or gaps:
            break
        time.sleep(BETWEEN_READINGS)
        report = _checked(path)
        faults, gaps = report.faults, report.gaps
    else:
        faults, gaps = [], []  # no two readings agreed on any
    holder = writer(path)
    return Verdict(
        worker=worker,
        directory=str(path),
        ok=not (faults or gaps),
        segments=len(report.segments),
        frames=report.frames,
        size_bytes=report.bytes,
        in_use_by=holder,
        torn_tail=str(report.torn.reason) if report.torn is not None and holder is None else "",
        faults=[str(fault) for fault in faults],
        gaps=gaps,
    )


def elsewhere(found: Found, worker: str) -> dict[str, Elsewhere]:
    """What the other journals of the system have of this worker's messages, and of theirs to it."""
    return {
        peer: Elsewhere(other.watermarks.get(worker, 0), other.acked.get(worker, 0))
        for peer, other in _others(found, worker).items()
    }


def writer(path: Path) -> int | None:
    """The process that has the journal open for writing, 0 if the system does not tell which. Not for a process that
    has it open itself: it would lose its lock."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return lock_holder(descriptor)
    finally:
        os.close(descriptor)


def _look(path: Path) -> Recovered:
    """What the journal holds now; as in `verify`, only damage that is found twice is."""
    seen = ""
    for _ in range(READINGS):
        try:
            return read(path)
        except DamagedJournal as fault:
            before, seen = seen, _what(fault)
            if seen == before or writer(path) is None:
                raise
            time.sleep(BETWEEN_READINGS)
    return read(path)


def _checked(path: Path) -> Report:
    """A segment may be trimmed between its listing and its opening, but not for ever."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return check(path)
        except FileNotFoundError:
            continue
    return check(path)


def _others(found: Found, worker: str) -> dict[str, Recovered]:
    others: dict[str, Recovered] = {}
    for peer, path in found.all.items():
        if peer != worker:
            try:
                others[peer] = _look(path)
            except (PersistError, FileNotFoundError):
                continue  # what it has is not known then
    return others


def _peers(worker: str, recovered: Recovered, others: Mapping[str, Recovered]) -> list[PeerStatus]:
    listed = []
    for peer, assigned in recovered.assigned.items():
        received = recovered.acked.get(peer, 0)
        if peer in others:
            received = max(received, others[peer].watermarks.get(worker, 0))
        elif peer == worker:
            received = max(received, recovered.watermarks.get(worker, 0))
        if assigned:
            pending = max(0, assigned - received)
            listed.append(PeerStatus(peer=peer, assigned=assigned, received=received, pending_messages=pending))
    return listed


def _alone(path: Path, worker: str | None) -> Found:
    """The directory of a journal was named; it may still be one of a system."""
    run = path.parent.parent
    if path.parent.name == JOURNALS and os.path.lexists(run / IDENTITY):
        found = _of_system(str(run), run, path.name, None)
        if worker in {None, path.name}:
            return found
    if worker is not None:
        raise CannotFind(f"{path} is a journal, not a system: leave out {worker!r}", 2)
    return Found(str(path), None, {path.name: path}, {path.name: path})


def _of_system(place: str, path: Path, worker: str | None, home: Path | None) -> Found:
    seen = read_status(place, home=home)
    if seen.condition in {Condition.UNKNOWN, Condition.NOT_YOURS, Condition.UNREADABLE}:
        raise CannotFind(seen.summary, seen.condition.exit_code)
    with RunDirectory.open(path, create=False) as directory:
        identity = directory.read_identity()
        names = directory.journals()
        for name in names:
            try:
                directory.check_journal(name)
            except RunDirectoryError as error:
                raise CannotFind(str(error), Condition.NOT_YOURS.exit_code) from None
    known = (*identity.workers, GATEWAY) if identity is not None else ()
    names = [*(name for name in known if name in names), *(name for name in names if name not in known)]
    everything = {name: path / JOURNALS / name for name in names}
    if worker is not None and worker not in everything:
        has = f"it has those of {', '.join(names)}" if names else "it has none"
        if identity is not None and identity.level == "memory":
            has += "; level memory keeps none on disk"
        raise CannotFind(f"{seen.name} has no journal of a worker {worker!r}; {has}", 4)
    chosen = everything if worker is None else {worker: everything[worker]}
    running = seen.condition in {Condition.RUNNING, Condition.STARTING}
    return Found(seen.name, path, chosen, everything, running)


def _is_journal(path: Path) -> bool:
    try:
        names = os.listdir(path)
    except OSError:
        return False
    return (
        any(segment_number(name) is not None for name in names)
        or set(names) == {LOCK}
        or (path.parent.name == JOURNALS and os.path.lexists(path.parent.parent / IDENTITY))
    )


def _what(fault: PersistError) -> str:
    """The same for the same fault, while the file grows."""
    return f"{type(fault).__name__} {getattr(fault, 'path', '')} {getattr(fault, 'offset', '')}"
