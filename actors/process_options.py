"""What the operating system is to grant, or not to grant, a worker process."""

from __future__ import annotations

import msgspec


class ProcessOptions(msgspec.Struct, frozen=True):
    """None: as the supervisor has it. Applied before any code of the user is imported; see `hygiene`.

    memory_bytes  largest address space (RLIMIT_AS); an allocation beyond it raises MemoryError. It counts what is
                  mapped, not what is used: shared memory, libraries and the stacks of threads too
    open_files    most open descriptors (RLIMIT_NOFILE)
    cpus          the processors that it may run on
    nice          added to the supervisor's niceness; 0 to 19 for everybody, below 0 for root
    umask         for the files that handlers make; the runtime's own are for this user only in any case
    cwd           its working directory
    user          the name or number of the user that it runs as. Another one than the user who starts the system: only
                  root may do that. No code of its handlers ever runs as root then, not even their import
    group         the name or number of its group, where that is not the user's own
    ring_bytes    the size of every ring into it, the one from the world outside too, a power of two; None: as the
                  topology has it. What a route says of its own rings comes before that
    """

    memory_bytes: int | None = None
    open_files: int | None = None
    cpus: tuple[int, ...] | None = None
    nice: int = 0
    umask: int | None = None
    cwd: str | None = None
    user: str | int | None = None
    group: str | int | None = None
    ring_bytes: int | None = None
