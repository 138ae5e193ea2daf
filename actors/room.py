"""What there is for rings: the shared memory that is free, and the memory that this process may have."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from actors.ring_sizes import Room
from bus.segment import available


def room() -> Room:
    """As it is now."""
    limits = [limit for limit in (_installed(), memory_limit()) if limit is not None]
    return Room(available(), min(limits, default=None))


def memory_limit(group: bytes | None = None, mounts: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The least limit of the control group that /proc/self/cgroup (`group`) names and of those around it; None: none.

    What a container shows of itself may be mounted at the root, whatever the path says.
    """
    if group is None:
        try:
            group = Path("/proc/self/cgroup").read_bytes()
        except OSError:
            return None
    found = []
    for line in group.splitlines():
        number, _, rest = os.fsdecode(line).partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            base, file = mounts / "memory", "memory.limit_in_bytes"
        elif number == "0":
            base, file = mounts, "memory.max"
        else:
            continue
        here = PurePosixPath(path.lstrip("/"))
        found += [limit for place in (here, *here.parents) if (limit := _number(base / place / file)) is not None]
    return min(found, default=None)


def _installed() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _number(file: Path) -> int | None:
    """None for a file that is not there, or that says `max`."""
    try:
        return int(file.read_bytes())
    except (OSError, ValueError):
        return None
