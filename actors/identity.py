"""Who runs a system, and how a run ended: the two records a run directory keeps, and whether a process still lives.

A process is named by (pid, start time, boot id): a pid alone may long be somebody else's.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import msgspec

SEGMENT_PREFIX = "ringleader-"
_RUN_ID = re.compile(r"[0-9a-f]{8}")
_PROC = Path("/proc/self/stat").exists()


class EdgeIdentity(msgspec.Struct, frozen=True):
    source: str
    target: str
    ring: str  # name of the shared-memory segment


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs a system, and where what it shares is found. Unknown fields of a newer version are ignored."""

    name: str
    pid: int
    start_time: int
    boot_id: str
    run_id: str
    session: str = ""  # stays the same when a crashed run is resumed
    level: str = ""
    started_ns: int = 0  # wall clock
    board: str = ""  # name of the shared-memory segment with the status blocks
    workers: tuple[str, ...] = ()
    handlers: dict[str, tuple[str, ...]] = {}  # worker -> its handlers, in the order of their indexes
    groups: dict[str, str] = {}  # worker -> the groups it is in, the outermost first, with slashes between them
    peers: tuple[str, ...] = ()  # in the order of their indexes
    edges: tuple[EdgeIdentity, ...] = ()
    rings: dict[str, int] = {}  # edge, as "sender>receiver" -> the size of its ring; also of one that is gone, as long
    # as something sent by it is pending
    users: dict[str, tuple[int, ...]] = {}  # worker -> the user its journal belongs to, where that is another one

    def alive(self) -> bool:
        """Whether exactly this process still runs: same pid, same start time, same boot."""
        return self.boot_id == boot_id() and self.start_time == process_start(self.pid)


class WorkerEnd(msgspec.Struct, frozen=True):
    restarts: int
    last_death: str
    deaths: int = 0
    gave_up: bool = False
    dead_letters: int = 0


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. Belongs to the identity with the same `run_id`."""

    run_id: str
    status: int
    reason: str
    ended_ns: int = 0  # wall clock
    workers: dict[str, WorkerEnd] = {}
    pending: dict[str, int] = {}  # "sender -> receiver": messages that were committed and not consumed


def new_identity(name: str) -> Identity:
    """A new run by this process. `msgspec.structs.replace` fills in the rest."""
    pid = os.getpid()
    started = process_start(pid)
    if started is None:
        raise RuntimeError(f"process {pid} cannot find out when it was started itself: is /proc missing?")
    return Identity(name=name, pid=pid, start_time=started, boot_id=boot_id(), run_id=secrets.token_hex(4))


def boot_id() -> str:
    """Names this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        import psutil

        return f"booted at {int(psutil.boot_time())}"


def process_start(pid: int) -> int | None:
    """When process `pid` started, in a unit that only serves comparing; None if it does not run (any more)."""
    if pid <= 0:
        return None
    if _PROC:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in {b"Z", b"X"} else int(fields[19])
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1e6)
    except psutil.NoSuchProcess:
        return None


def segment_name(run_id: str, number: int) -> str:
    """The name of one shared-memory segment of a run."""
    return f"{segment_prefix(run_id)}{number}"


def stale_prefix(identity: Identity) -> str:
    """What the names of all shared-memory segments of that run begin with. Only for the dead: ask `alive()` first."""
    return segment_prefix(identity.run_id)


def segment_prefix(run_id: str) -> str:
    """What the names of all shared memory of a run begin with."""
    # An empty or shorter run id would name the segments of others as well.
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"run id {run_id!r} is not 8 hexadecimal digits")
    return f"{SEGMENT_PREFIX}{run_id}-"
