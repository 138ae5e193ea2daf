"""Pages of the fork server's that a process is going to write to, made its own before it is in a hurry.

After a fork, parent and child share their memory, and whoever writes to a page first gets a copy of it: a fault each,
and in Python already who only looks at an object writes to it. A worker that starts takes two thousand of them, a third
of its time. A spare has the time to do it beforehand, all at once. What that costs is memory: the pages of the runtime
that it would not have written to. Those of modules that the user has imported in the fork server are left alone, as
they may be many.
"""

from __future__ import annotations

import ctypes

_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # Linux 5.14; elsewhere nothing is done
_own: list[tuple[int, int]] = []
_shared: list[tuple[int, int]] = []


def note() -> None:
    """In the fork server, once the runtime is imported and nothing else: this is what there is."""
    _own[:], _shared[:] = [], []
    try:
        with open("/proc/self/maps") as file:
            for line in file:
                place, rights, _, _, _, *name = line.split()
                begin, end = (int(number, 16) for number in place.split("-"))
                if rights == "rw-p" and name != ["[stack]"]:
                    _own.append((begin, end - begin))
                elif rights[0] == "r" and name and name[0].startswith("/"):
                    _shared.append((begin, end - begin))
    except OSError:
        pass  # then nothing is known of it


def touch() -> None:
    """In a process that was forked: make it its own."""
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for ranges, advice in ((_own, _MADV_POPULATE_WRITE), (_shared, _MADV_POPULATE_READ)):
        for begin, size in ranges:
            advise(begin, size, advice)  # what is not there any more, or not for this, is left
