"""Reads how a system is, from outside and without anybody's help: the run directory, shared memory, psutil.

What holds:
- Nothing is written and no lock is touched, so reading is safe at any time, in any process, the supervisor's included.
- Nobody is asked: it works the same while workers hang or are stopped, and while the supervisor is.
- What stands in shared memory is not trusted: numbers that cannot be are shown as such or left out, never followed.
- A system counts as running only while exactly the process that its identity names is alive.

`read_status` never raises for what it finds: an unknown system, somebody else's and a damaged one are conditions too.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import psutil
from msgspec.structs import replace

from actors.exits import ExitStatus
from actors.identity import Exit, Identity, boot_id, stale_prefix
from actors.rundir import IDENTITY, JOURNALS, NotYours, RunDirectory, RunDirectoryError, default_home, list_systems
from actors.status_board import with_board
from actors.status_types import (
    HUNG_AFTER,
    Condition,
    EdgeStatus,
    Ended,
    ProcessStatus,
    Reading,
    SystemList,
    SystemStatus,
    WorkerStatus,
    with_rates,
)
from actors.status_words import dead_summary, death, duration, ended_notes, first_line, running_summary

__all__ = [
    "EdgeStatus",
    "SystemList",
    "SystemStatus",
    "WorkerStatus",
    "list_status",
    "locate",
    "read_process",
    "read_status",
    "readings",
    "with_rates",
]

INTERVAL: Final = 1.0  # seconds between two readings of somebody who watches
_SHM: Final = Path("/dev/shm")
_ATTEMPTS: Final = 3  # a system may end, or be started again, between two looks at it
_PID_SLACK: Final = 2.0  # seconds by which a process may seem younger than its own first sign of life


def read_status(
    system: str | os.PathLike[str], *, home: Path | None = None, hung_after: float = HUNG_AFTER
) -> SystemStatus:
    """The status of one system: a name in the home directory, or the path of a run directory."""
    path = locate(system, home)
    for attempt in range(_ATTEMPTS):
        status = _read(path, hung_after)
        if status.condition is not Condition.STARTING or attempt == _ATTEMPTS - 1:
            break
        time.sleep(0.01)  # between its identity and its shared memory, or between its end and its process's
    if status.condition is Condition.UNKNOWN:
        return _unknown(system, path, home)
    return status


def list_status(home: Path | None = None, *, hung_after: float = HUNG_AFTER) -> SystemList:
    """All systems of the home directory, by name. Raises NotYours for somebody else's home."""
    home = home or default_home()
    try:
        found = list_systems(home)
    except PermissionError:  # not even whose it is may be known
        raise NotYours(home, _owner(home)) from None
    systems = [read_status(one.path, hung_after=hung_after) for one in found]
    return SystemList(home=str(home), systems=tuple(one for one in systems if one.condition is not Condition.UNKNOWN))


def readings(read: Callable[[], Reading], first: Reading, *, interval: float = INTERVAL) -> Iterator[Reading]:
    """`first`, then a new reading each `interval` seconds for ever, with rates over the time since the one before."""
    reading = first
    while True:
        yield reading
        time.sleep(interval)
        previous, reading = reading, read()
        if isinstance(reading, SystemStatus) and isinstance(previous, SystemStatus):
            reading = with_rates(previous, reading)


def locate(system: str | os.PathLike[str], home: Path | None = None) -> Path:
    """Where the run directory of that name or path is, or would be."""
    if not isinstance(system, str):
        return Path(os.path.abspath(system))
    named = (home or default_home()) / system
    is_path = os.sep in system or system in {os.curdir, os.pardir}
    here = os.path.join(system, IDENTITY)
    if is_path or (not os.path.lexists(named) and os.path.isfile(here)):  # neither minds what it may not look into
        return Path(os.path.abspath(system))
    return named


def _unknown(system: str | os.PathLike[str], path: Path, home: Path | None) -> SystemStatus:
    home = home or default_home()
    try:
        names = [found.name for found in list_systems(home)]
    except (RunDirectoryError, OSError):
        names = []
    name = os.fspath(system)
    what = (
        "there is no run directory" if not os.path.isdir(path) else "the directory holds no system (no identity.json)"
    )
    close = tuple(get_close_matches(name, names, n=3, cutoff=0.5))
    summary = f"unknown system {name!r}: {what} at {path}"
    if close:
        summary += f"; did you mean {' or '.join(close)}?"
    elif names:
        summary += f"; {home} has {', '.join(names)}"
    else:
        summary += f"; {home} has no systems"
    return SystemStatus(
        name=name, directory=str(path), condition=Condition.UNKNOWN, summary=summary, close_matches=close
    )


# ---------------------------------------------------------------------------------------------------- the directory
def _read(path: Path, hung_after: float) -> SystemStatus:
    def failed(condition: Condition, summary: str) -> SystemStatus:
        return SystemStatus(name=path.name, directory=str(path), condition=condition, summary=summary)

    try:
        with RunDirectory.open(path, create=False) as directory:
            identity, ending = directory.read_identity(), directory.read_exit()
    except (FileNotFoundError, NotADirectoryError):
        return failed(Condition.UNKNOWN, "")
    except (NotYours, PermissionError) as error:
        owner = error.uid if isinstance(error, NotYours) else _owner(path)
        return failed(Condition.NOT_YOURS, f"{path} belongs to another user, {_user(owner)}; you are {_user()}")
    except (RunDirectoryError, OSError, ValueError) as error:
        return failed(Condition.UNREADABLE, f"cannot be read: {error}")
    if identity is None:
        return failed(Condition.UNKNOWN, "")
    if ending is not None and ending.run_id == identity.run_id:
        return _stopped(path, identity, ending)
    if not identity.alive():
        return _dead(path, identity, hung_after)
    return _alive(path, identity, hung_after)


def _owner(path: Path) -> int:
    """Whose directory keeps us from `path`."""
    for place in (path, *path.parents):
        try:
            return place.stat(follow_symlinks=False).st_uid
        except OSError:
            continue
    return 0


def _user(uid: int | None = None) -> str:
    uid = os.geteuid() if uid is None else uid
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _base(path: Path, identity: Identity, condition: Condition, summary: str = "") -> SystemStatus:
    return SystemStatus(
        name=identity.name,
        directory=str(path),
        condition=condition,
        summary=summary,
        level=identity.level,
        run_id=identity.run_id,
        started_unix_seconds=identity.started_ns / 1e9 or None,
        read_at_unix_seconds=time.time(),
        read_at_monotonic_seconds=time.monotonic(),
    )


def _stopped(path: Path, identity: Identity, ending: Exit) -> SystemStatus:
    try:
        status = ExitStatus(ending.status)
        name, meaning = status.name, status.meaning
    except ValueError:
        name, meaning = "unknown", "of a newer version"
    deaths = {worker: death(end.last_death) for worker, end in ending.workers.items() if end.last_death}
    ago = duration(max(0.0, time.time() - ending.ended_ns / 1e9))
    summary = f"stopped {ago} ago with status {ending.status} ({name}, {meaning})"
    if ending.reason:
        summary += f": {first_line(ending.reason)}"
    ended = Ended(
        status=ending.status,
        name=name,
        reason=ending.reason,
        at_unix_seconds=ending.ended_ns / 1e9,
        last_deaths=deaths,
        deaths={worker: end.deaths for worker, end in ending.workers.items() if end.deaths},
        gave_up=tuple(worker for worker, end in ending.workers.items() if end.gave_up),
        pending_messages=ending.pending,
        dead_letters={worker: end.dead_letters for worker, end in ending.workers.items() if end.dead_letters},
    )
    return replace(
        _base(path, identity, Condition.STOPPED, summary),
        ended=ended,
        notes=ended_notes(ended),
        journal_bytes_on_disk=_journal_bytes(path),
    )


def _dead(path: Path, identity: Identity, hung_after: float) -> SystemStatus:
    leftovers = _segments(identity)
    base = _base(path, identity, Condition.DEAD)
    status = with_board(base, identity, hung_after, read_process) if leftovers else None
    rebooted = identity.boot_id != boot_id()
    return replace(
        status or base,
        summary=dead_summary(identity.pid, leftovers, level=identity.level, rebooted=rebooted),
        leftovers=leftovers,
        journal_bytes_on_disk=_journal_bytes(path),
    )


def _alive(path: Path, identity: Identity, hung_after: float) -> SystemStatus:
    status = with_board(_base(path, identity, Condition.RUNNING), identity, hung_after, read_process)
    if status is None:
        summary = (
            f"its process {identity.pid} is alive, but its shared memory is not there: it is being started, has just "
            "ended, or could not start"
        )
        return _base(path, identity, Condition.STARTING, summary)
    return replace(status, summary=running_summary(status))


def _segments(identity: Identity) -> tuple[str, ...]:
    try:
        prefix = stale_prefix(identity)
        return tuple(sorted(name for name in os.listdir(_SHM) if name.startswith(prefix)))
    except (OSError, ValueError):
        return ()


def _journal_bytes(path: Path) -> int | None:
    """What the journals take on disk, by the sizes of their files."""
    total = 0
    try:
        for folder in os.scandir(path / JOURNALS):
            if folder.is_dir(follow_symlinks=False):
                total += sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(folder))
    except OSError:
        return None
    return total


# ---------------------------------------------------------------------------------------------------- processes
def read_process(pid: int, alive_for: float | None = None) -> ProcessStatus | None:
    """One process; None if it does not live. `alive_for`: it showed a sign of life so many seconds ago, so a younger
    one only has the same number."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            age = max(1e-3, time.time() - process.create_time())
            state = process.status()
            if state in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
                return None
            if alive_for is not None and age < alive_for - _PID_SLACK:
                return None
            times = process.cpu_times()
            seconds = float(times.user + times.system)
            return ProcessStatus(
                state=str(state),
                cpu_percent=seconds / age * 100,
                cpu_seconds=seconds,
                rss_bytes=process.memory_info().rss,
                threads=process.num_threads(),
                open_files=_open_files(process),
                age_seconds=age,
            )
    except (psutil.Error, OverflowError, ValueError):
        return None


def _open_files(process: psutil.Process) -> int | None:
    try:
        return int(process.num_fds())
    except (psutil.AccessDenied, NotImplementedError):
        return None
