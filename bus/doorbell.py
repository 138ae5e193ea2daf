"""The doorbell in plain Python: what a worker sleeps on when all its rings are empty. `_ring.c` has the same class.

One aligned u32 word in shared memory: 1 = armed, somebody is about to sleep or sleeps; 0 = not. One process waits, any
number may ring. The contract:

    consumer                                   producer
      arm()     word = 1, full fence             publish (the tail of a ring, say)
      look again; if there is anything: disarm   ring()  full fence; if word = 1: word = 0 and wake
      wait(bounded)
      disarm(), look

Either the consumer's second look sees what was published, or the producer sees the word armed: a wake-up is not lost.
A wait may also end early (by a signal, or because the wake for an earlier wait came late), and always ends at its
bound, so whoever waits has to look again in any case.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import sys
import time
from typing import TYPE_CHECKING, Final

from bus.errors import LayoutError
from bus.memory import address_of, fence

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

IDLE: Final = 0
ARMED: Final = 1
LONGEST_WAIT: Final = 3600.0  # seconds; "for ever" is not a wait

_WORD: Final = 4
_SHORT_SLEEP: Final = 0.0002
_LONGEST_SLEEP: Final = 0.002
_FUTEX_WAIT: Final = 0  # not FUTEX_PRIVATE_FLAG: the other side is another process
_FUTEX_WAKE: Final = 1
_ALL: Final = 2**31 - 1
_OWN_NUMBERS: Final = {"x86_64": 202, "ppc64le": 221, "ppc64": 221, "s390x": 238, "mips64": 5194, "sparc64": 142}
_NUMBER: Final = _OWN_NUMBERS.get(platform.machine(), 98)  # newer architectures all have the same

# Where `_ring.c` uses a futex, too: who sleeps in one is woken by nothing else.
_libc: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" and sys.maxsize > 2**32 else None


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Doorbell:
    """The doorbell whose word lies `offset` bytes into `buffer`."""

    __slots__ = ("_address", "_closed", "_waiting", "_word")

    def __init__(self, buffer: WriteableBuffer, offset: int = 0) -> None:
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if view.readonly:
                raise BufferError("a doorbell needs a writable buffer")
            if not 0 <= offset <= view.nbytes - _WORD:
                raise LayoutError("doorbell", "offset", offset, f"4 bytes within the buffer of {view.nbytes}")
            with view[offset : offset + _WORD] as four:
                self._address = address_of(four)
                if self._address % _WORD:
                    raise LayoutError("doorbell", "address", self._address, f"a multiple of {_WORD}")
                self._word = four.cast("I")
        self._waiting = 0
        self._closed = False

    def arm(self) -> None:
        """From here on whoever rings will wake the wait that follows. Look again before waiting."""
        self._require_open()
        self._word[0] = ARMED
        fence()
        # failpoint: doorbell-armed

    def wait(self, timeout: float, /) -> bool:
        """Sleeps while the word is armed, at most `timeout` seconds. True if the bell was rung."""
        self._require_open()
        if not math.isfinite(timeout):
            raise ValueError(f"a wait has to be bounded, not {(timeout,)}")
        self._waiting += 1
        try:
            if timeout > 0 and self._word[0] == ARMED:
                _sleep_while_armed(self._word, self._address, min(timeout, LONGEST_WAIT))
        finally:
            self._waiting -= 1
        return self._word[0] != ARMED

    def disarm(self) -> None:
        self._require_open()
        self._word[0] = IDLE

    def ring(self) -> bool:
        """After publishing: wakes the one who waits, if there is one, and says so; otherwise no system call is made."""
        self._require_open()
        fence()
        if self._word[0] != ARMED:
            return False
        self._word[0] = IDLE
        # failpoint: doorbell-cleared
        _wake(self._address)
        return True

    def close(self) -> None:
        """Lets go of the buffer. BufferError while another thread waits. Closing twice is fine."""
        if self._waiting:
            raise BufferError("somebody waits for this doorbell")
        self._word.release()
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the doorbell is closed")


def _futex_wait(word: memoryview, address: int, timeout: float) -> None:
    """Once: a signal ends it early, so that its Python handler runs now."""
    assert _libc is not None
    spec = _Timespec(int(timeout), int(timeout % 1 * 1e9))
    arguments = (ctypes.c_void_p(address), ctypes.c_int(_FUTEX_WAIT), ctypes.c_int(ARMED), ctypes.byref(spec), None, 0)
    if _libc.syscall(ctypes.c_long(_NUMBER), *arguments) == -1:
        code = ctypes.get_errno()
        if code not in {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}:
            raise OSError(code, f"futex wait: {os.strerror(code)}")


def _futex_wake(address: int) -> None:
    assert _libc is not None
    _libc.syscall(ctypes.c_long(_NUMBER), ctypes.c_void_p(address), ctypes.c_int(_FUTEX_WAKE), _ALL, None, None, 0)


def _sleep_briefly(word: memoryview, address: int, timeout: float) -> None:
    """The same contract where there is no futex: bounded short sleeps, each a little longer than the one before."""
    deadline = time.monotonic() + timeout
    pause = _SHORT_SLEEP
    while word[0] == ARMED:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_SLEEP)


def _wake_nobody(address: int) -> None:
    """Whoever sleeps briefly looks at the word himself."""


_sleep_while_armed = _futex_wait if _libc is not None else _sleep_briefly
_wake = _futex_wake if _libc is not None else _wake_nobody
