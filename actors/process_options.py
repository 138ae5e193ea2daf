"""What the operating system is to grant, or not to grant, a worker process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """None: as the supervisor has it.

    memory_bytes  largest address space (RLIMIT_AS); an allocation beyond it raises MemoryError
    open_files    most open descriptors (RLIMIT_NOFILE)
    cpus          the processors that it may run on
    nice          added to the supervisor's niceness; 0 to 19 for everybody, below 0 for root
    umask         for the files that handlers make
    cwd           its working directory
    user          a user name or number to run as; only root can change it
    """

    memory_bytes: int | None = None
    open_files: int | None = None
    cpus: tuple[int, ...] | None = None
    nice: int = 0
    umask: int | None = None
    cwd: str | None = None
    user: str | int | None = None
