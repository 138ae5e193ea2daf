"""A process that was asked of the fork server, until it is told what it is to be: the supervisor's side of `newborn`.

Every wait is bounded. Whatever becomes of it, closing our ends makes sure that a process that was forked ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack

from actors.forking import NUMBER
from actors.forkserver import ForkServer
from actors.last_words import LastWords
from actors.newborn import HEADER, NOW


class Birth:
    """One such process. Made by asking for it, which does not wait for anything.

    `lifeline`  the only write end of a pipe: its end-of-file tells the process that we are gone
    `status`    its pid, and later its exit code, come out of it
    `guardian`  of the fork server that was asked
    """

    def __init__(self, server: ForkServer, packet: bytes = NOW) -> None:
        with ExitStack() as ours, ExitStack() as theirs:
            self.words = LastWords()
            ours.callback(self.words.close)
            lifeline, self.lifeline = _pipe(theirs, ours)
            told, hears = socket.socketpair()
            ours.callback(told.close)
            theirs.callback(hears.close)
            self.status, status = _pipe(ours, theirs)
            server.request([status, lifeline, self.words.fd, hears.fileno()], packet)
            self.guardian = server.pid or 0
            self._told = told
            self.pid = 0
            self.pidfd = -1
            ours.pop_all()

    def wake(self) -> None:
        """Have it go on if it was stopped."""
        with contextlib.suppress(OSError, AttributeError):  # where that can be told by a pidfd, and it lives
            signal.pidfd_send_signal(self.pidfd, signal.SIGCONT)

    def await_pid(self, deadline: float) -> int:
        """Its pid, once there is one; TimeoutError, or OSError and EOFError if it will never be."""
        if not self.pid:
            number = NUMBER.unpack(read(self.status, NUMBER.size, deadline))[0]
            if number < 0:
                raise NoProcess(-number, os.strerror(-number))
            self.pid = number
            try:
                self.pidfd = os.pidfd_open(self.pid)
            except (AttributeError, ProcessLookupError):
                # No pidfd on this system, or dead and reaped already: then the arrival of its exit code says so.
                self.pidfd = os.dup(self.status)
        return self.pid

    @property
    def well(self) -> bool:
        """It lives, as far as is known, or is still to be born."""
        try:
            if not self.pid and readable(self.status, 0):
                self.await_pid(time.monotonic() + 1.0)
        except (OSError, EOFError):
            return False
        return not self.pid or not (readable(self.pidfd, 0) or readable(self.status, 0))

    def tell(self, message: bytes, fds: Sequence[int], deadline: float) -> None:
        """What it is to be. It gets copies of the descriptors."""
        told = self._told
        told.setblocking(False)
        socket.send_fds(told, [HEADER.pack(len(message))], fds)
        rest = memoryview(message)
        while rest:
            if not _writable(told, deadline - time.monotonic()):
                raise TimeoutError("timed out")
            rest = rest[told.send(rest) :]
        told.close()

    def close(self) -> None:
        """Let go of it; it ends, if it was ever born."""
        self._told.close()
        for fd in (self.lifeline, self.status, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.status = self.pidfd = -1
        self.words.close()


class NoProcess(OSError):
    """The fork server could not fork one; it goes on."""


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe, each end of which is closed with its stack."""
    ends = os.pipe()
    for stack, fd in zip((reader, writer), ends, strict=True):
        stack.callback(os.close, fd)
    return ends


def readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0, timeout) * 1000))


def read(fd: int, size: int, deadline: float) -> bytes:
    """Exactly so many bytes; TimeoutError, EOFError."""
    data = b""
    while len(data) < size:
        if not readable(fd, deadline - time.monotonic()):
            raise TimeoutError("timed out")
        part = os.read(fd, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _writable(told: socket.socket, timeout: float) -> bool:
    poll = select.poll()
    poll.register(told, select.POLLOUT)
    return bool(poll.poll(max(0, timeout) * 1000))
