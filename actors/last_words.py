"""What a worker process can say when nothing of it works any more: crashes, and stacks on demand.

The supervisor makes a file without a name, and gives it to the worker. faulthandler writes to it from within a signal
handler, without the interpreter's help: the Python stacks of all threads when the process crashes (SIGSEGV, SIGFPE,
SIGABRT, SIGBUS, SIGILL), and the same when it gets DUMP_SIGNAL. What was written is there whatever becomes of the
process. A process that cannot be set up (`hygiene`) says so there as well.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
import traceback

# A real-time signal: they have no meaning but what a program gives them, and programs begin at the other end.
DUMP_SIGNAL = signal.SIGRTMAX - 3 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
LIMIT = 1 << 20  # bytes that are read at most: the last ones


class LastWords:
    """The supervisor's side. `fd` is what the worker is to be given."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("ringleader-last-words", os.MFD_CLOEXEC)
        else:
            import tempfile

            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)

    def read(self) -> str:
        return read(self.fd)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read(fd: int, begin: int = 0) -> str:
    """What was written to it from `begin` on."""
    end = os.fstat(fd).st_size
    begin = max(begin, end - LIMIT)
    return os.pread(fd, max(0, end - begin), begin).decode("utf-8", "replace")


def listen(fd: int) -> None:
    """In the worker: from now on."""
    faulthandler.enable(fd, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, fd, all_threads=True, chain=False)


def say(fd: int, error: BaseException) -> None:
    """In the worker: why it cannot go on, where no traceback has a place yet."""
    text = "".join(traceback.format_exception(error)).encode("utf-8", "replace")
    os.write(fd, text[-LIMIT:])
