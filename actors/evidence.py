"""What the kernel says about a process: its state, and whether processes were killed for memory.

- Killed for memory: the counter `oom_kill` of the supervisor's own control group (version 2: memory.events, version 1:
  memory.oom_control), which its workers are born into; of the whole machine (/proc/vmstat) where there is no such
  group. And the kernel's log, where it may be read: it names the process.
- A counter says how many, not who. So a SIGKILL is put down to it only within a few seconds after it grew, once for
  every one that it grew by, and never for a process that the supervisor killed itself. `look` has to be called
  regularly for that: what grew long ago explains nothing.

Whatever cannot be read is no evidence, and no error.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

BELIEVED = 5.0  # seconds in which a killed process has to turn up dead
RECORD_BYTES = 8192  # of the kernel's log, at most what one read returns
_KILLED = re.compile(rb"Killed process (\d+) \((.*?)\)")


def process_state(pid: int) -> str:
    """R, S, D, T, t, Z as the kernel has it; empty where it does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return stat.rpartition(b")")[2].split()[0].decode("ascii", "replace")


def counter_file(group: bytes | None = None, mounts: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """Where the kernel counts for the control group that /proc/self/cgroup (`group`) names; None: nowhere."""
    if group is None:
        try:
            group = Path("/proc/self/cgroup").read_bytes()
        except OSError:
            return None
    for line in group.splitlines():
        number, _, rest = os.fsdecode(line).partition(":")
        controllers, _, path = rest.partition(":")
        # What a container shows of itself may be mounted at the root, whatever the path says.
        places = [path.lstrip("/"), ""]
        if "memory" in controllers.split(","):
            found = [mounts / "memory" / place / "memory.oom_control" for place in places]
        elif number == "0":
            found = [mounts / place / "memory.events" for place in places]
        else:
            continue
        for file in found:
            if _count(file) is not None:
                return file
    return None


class MemoryEvidence:
    """Looks for processes killed for memory. To be made before the first worker; `close` gives back what it holds."""

    def __init__(
        self,
        counter: Path | None = None,
        *,
        log: Path | None = Path("/dev/kmsg"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        group = counter or counter_file()
        self._what = "its control group" if group is not None else "this machine"
        self._counter = group or Path("/proc/vmstat")
        self._clock = clock
        self._count = _count(self._counter)
        self._unclaimed: deque[float] = deque()  # when each was seen
        self._log = _open_at_end(log)
        self._named: dict[int, bytes] = {}  # pid -> what the kernel logged
        self.look()

    def look(self) -> None:
        """To be called at every turn of the supervisor; reads one small file."""
        count, now = _count(self._counter), self._clock()
        if count is not None and self._count is not None:
            self._unclaimed.extend([now] * min(1000, count - self._count))
        self._count = count
        while self._unclaimed and now - self._unclaimed[0] > BELIEVED:
            self._unclaimed.popleft()

    def of(self, pid: int, title: str = "") -> str:
        """What says that this process, which SIGKILL has ended and the supervisor did not, was killed for memory; empty
        if nothing does. To be asked once for each such death."""
        self.look()
        self._read_log()
        logged = self._named.pop(pid, None)
        if logged is not None and _same_name(logged, title):
            if self._unclaimed:
                self._unclaimed.popleft()
            return "the kernel's log names this process as killed for lack of memory"
        if not self._unclaimed:
            return ""
        self._unclaimed.popleft()
        return f"the kernel has just killed a process of {self._what} for lack of memory ({self._counter})"

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _read_log(self) -> None:
        """What was logged since the last time; one read is one record. A log that ran over goes on with what it has."""
        for _ in range(10_000):
            try:
                record = os.read(self._log, RECORD_BYTES) if self._log is not None else b""
            except BrokenPipeError:
                continue
            except OSError:
                return
            if not record:
                return
            found = _KILLED.search(record)
            if found is not None:
                self._named[int(found[1])] = found[2]


def _same_name(logged: bytes, title: str) -> bool:
    """The kernel's log counts processes of all name spaces, so a number alone proves nothing."""
    return not title or logged == title.encode("utf-8", "replace")[:15]


def _count(file: Path) -> int | None:
    try:
        for line in file.read_bytes().splitlines():
            name, _, value = line.partition(b" ")
            if name == b"oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass  # not there, or not for us
    return None


def _open_at_end(log: Path | None) -> int | None:
    if log is None:
        return None
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.lseek(fd, 0, os.SEEK_END)
    except OSError:
        os.close(fd)
        return None
    return fd
