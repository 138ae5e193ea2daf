"""What plain Python has to know about memory: the order in which other processors see it, and where it lies.

A store through `memoryview.cast("Q")` or `.cast("I")` is one aligned machine store. On x86 stores become visible in
program order and loads are not reordered, which is all that publishing a tail needs. Elsewhere a fence stands between
the data and the tail. Nowhere is a store ordered before a *later load* of something else: that always takes a fence.
"""

from __future__ import annotations

import ctypes
import platform
from threading import Lock
from typing import Final

STRONGLY_ORDERED: Final = platform.machine().lower() in {"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"}


def fence() -> None:
    """Full fence: everything before it is visible to other processors before anything after it is done.

    On x86 the locked instruction inside a lock does it. On machines with acquire and release instructions the unlock
    of the first round keeps earlier accesses before it, the lock of the second round keeps later ones behind it, and
    the two are never swapped. The lock is new each time: one that is taken already would be looked at, not written,
    and neither another thread nor a signal handler may wait here.
    """
    lock = Lock()
    for _ in range(1 if STRONGLY_ORDERED else 2):
        lock.acquire()
        lock.release()


def address_of(view: memoryview) -> int:
    """Address of the first byte of a writable view; nothing stays exported."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
