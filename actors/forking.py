"""What the fork server does: forks a process for each request, tells its pid, and later how it ended.

- A request is a packet with descriptors: the first is where to tell, the others are the new process's, and so is what
  the packet says. A packet that begins with IMPORT has none, and names modules that all processes after it are to find
  imported.
- What is told are two numbers: the pid, or minus the error for which there is no process; and, when it has ended and
  was waited for, its exit code, or minus the signal that ended it. End-of-file: the fork server is gone, and so is it.
- A fork that fails, for want of memory or of room for one process more, fails that request and nothing else.
- A new process has no descriptor of the fork server's, nor of another worker's.

It has one thread, and waits without a timeout: it dies with its supervisor (`forkserver`).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

NUMBER = struct.Struct("q")
MOST = 64  # descriptors in a request
IMPORT, SEPARATOR = b"i", "\n"
LONGEST = 1 << 16  # bytes of a packet

# What a new process does, given what the packet says, its descriptors, and the pid of the fork server; its exit code.
Life = Callable[[bytes, list[int], int], int]


def serve(descriptor: int, live: Life) -> None:
    """Until nobody is left who could ask."""
    _without_stdin()
    requests = socket.socket(fileno=descriptor)
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # for the descriptor below to become readable
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told: dict[int, int] = {}  # pid -> where to tell how it ended
    look = select.poll()
    look.register(requests, select.POLLIN)
    look.register(woken, select.POLLIN)
    while True:
        ready = {fd for fd, _ in look.poll()}
        if woken in ready:
            os.read(woken, 65536)
            _tell_ends(told)
        if descriptor not in ready:
            continue
        packet, fds, _, _ = socket.recv_fds(requests, LONGEST, MOST)
        if not packet:
            return
        if packet.startswith(IMPORT):
            preload(packet[len(IMPORT) :].decode().split(SEPARATOR))
            continue
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or 1)
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            for fd in (woken, wake, fds[0], *told.values()):
                os.close(fd)
            _end(live, packet, fds[1:], server)
        for fd in fds[1:]:
            os.close(fd)
        _tell(fds[0], pid)
        if pid > 0:
            told[pid] = fds[0]
        else:
            os.close(fds[0])


def preload(modules: Sequence[str]) -> None:
    """Whoever imports in vain here does so again in the worker, where the error is seen."""
    gc.disable()  # what is imported stays
    for module in modules:
        try:
            __import__(module)
        except Exception:
            pass
    gc.freeze()  # no collection in a worker is to write to these pages
    gc.enable()


def _tell_ends(told: dict[int, int]) -> None:
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        fd = told.pop(pid, None)  # None: a child of a module that was imported
        if fd is not None:
            _tell(fd, os.waitstatus_to_exitcode(status))
            os.close(fd)


def _tell(fd: int, number: int) -> None:
    try:
        os.write(fd, NUMBER.pack(number))
    except OSError:
        pass  # whoever asked does not want to know any more


def _end(live: Life, packet: bytes, fds: list[int], server: int) -> None:
    """In the new process: it never returns to the fork server's code."""
    code = 1
    try:
        try:
            code = live(packet, fds, server)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at the end of any program
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _without_stdin() -> None:
    """Nobody competes for the terminal with the program."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if nothing:
        os.close(nothing)
