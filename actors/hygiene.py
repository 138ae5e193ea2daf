"""A new worker process made fit for handlers: what it inherited by accident goes, what its options say is applied.

All of it happens before any code of the user is imported. What cannot be applied is an error that names the option, the
value and why; a worker never runs with less, or more, than it was to have.

    signals      nothing blocked or pending; ignored are SIGINT (Ctrl-C is the supervisor's business), what Python
                 ignores itself (SIGPIPE, SIGXFSZ), and SIGHUP if the supervisor ignores it (nohup); all others default
    descriptors  none is passed on to what the worker starts unless it says so itself
    user         the one that is declared, with its groups and nothing else; see `user_account`
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.errors import RingleaderError
from actors.process_options import ProcessOptions
from actors.user_account import Account, account, become, cannot_change, gid_of, is_mapped, uid_of

if TYPE_CHECKING:
    from actors.validate_options import Machine

HEADROOM = 16 << 20  # bytes of address space that a worker needs at least, on top of what it was born with
_KEEP_IGNORED = {"SIGINT", "SIGPIPE", "SIGXFSZ", "SIGHUP"}


class OptionRefused(RingleaderError):
    """An option of the worker's process could not be applied."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(name, value, why)
        self.name, self.value, self.why = name, value, why

    def __str__(self) -> str:
        return f"process option {self.name}={self.value!r} could not be applied: {self.why}"


def reset_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep = {getattr(signal, name, None) for name in _KEEP_IGNORED}
    for number in signal.valid_signals() - keep:
        if number is signal.SIGTERM or signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in signal.sigpending():
        signal.sigwait({number})  # sent to the supervisor's group, before this process had left it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keep_descriptors() -> None:
    """Those that came with the process stay its own."""
    for name in os.listdir("/dev/fd"):
        try:
            if int(name) > 2:
                os.set_inheritable(int(name), False)
        except OSError:
            pass  # the one that was used for listing


def apply(options: ProcessOptions, run_as: Account | None = None) -> None:
    """Raises OptionRefused. The limits come last: what is done before them may need more. Only the user comes later,
    who may not raise them, and the directory, which has to be open to that user."""
    said: list[tuple[str, Callable[[Any], object]]] = [
        ("umask", os.umask),
        ("cpus", _set_cpus),
        ("nice", os.nice),
        ("open_files", _limit_files),
        ("memory_bytes", _limit_memory),
        ("user", lambda user: _run_as(run_as or account(user, options.group))),
        ("cwd", os.chdir),
    ]
    for name, action in said:
        value = getattr(options, name)
        if value is None or (name == "nice" and not value):
            continue
        try:
            action(value)
        except OSError as error:
            raise OptionRefused(name, value, error.strerror or str(error)) from None
        except (ValueError, AttributeError, TypeError, KeyError, OverflowError) as error:
            raise OptionRefused(name, value, str(error)) from None


def machine() -> Machine:
    """What can be known before a worker is started."""
    from actors.validate_options import Machine  # no worker needs it

    hard_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    hard_memory = resource.getrlimit(resource.RLIMIT_AS)[1]
    return Machine(
        root=os.geteuid() == 0,
        uid=os.geteuid(),
        cpus=frozenset(range(os.sysconf("SC_NPROCESSORS_CONF"))) if hasattr(os, "sched_setaffinity") else None,
        files_of_anybody=_files_of_anybody(),
        open_files=None if hard_files == resource.RLIM_INFINITY else hard_files,
        memory_bytes=None if hard_memory == resource.RLIM_INFINITY else hard_memory,
        is_directory=os.path.isdir,
        uid_of=uid_of,
        gid_of=gid_of,
        cannot_change=cannot_change(),
        is_mapped=is_mapped,
    )


def _files_of_anybody() -> int | None:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_bytes())
    except (OSError, ValueError):
        return None


def _run_as(wanted: Account) -> None:
    if wanted.uid == os.geteuid():
        return
    if os.geteuid() != 0:
        raise ValueError(cannot_change())
    become(wanted)


def _set_cpus(cpus: tuple[int, ...]) -> None:
    os.sched_setaffinity(0, cpus)
    missing = set(cpus) - os.sched_getaffinity(0)
    if missing:
        raise ValueError(f"there is no processor {', '.join(map(str, sorted(missing)))} for this process")


def _limit_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def _limit_memory(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_bytes().split()[0]) if os.path.exists("/proc/self/statm") else 0
    used = pages * resource.getpagesize()
    if size < used + HEADROOM:
        raise ValueError(
            f"the process takes {used:,} bytes before any handler is made; give {used + HEADROOM:,} or more"
        )
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
