"""What a process does that the fork server has forked: it is made fit, waits to be told what it is to be, and is that.

It is told by the supervisor (`birth`), in one message with descriptors. Until then nothing of it is particular to a
worker, so it may be born ahead of its time (`process.keep_spare`). From the first moment on it dies with its
supervisor.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence

import msgspec

from actors import hygiene, last_words, orphans
from actors.exits import WorkerExit
from actors.guardian import die_with_parent, set_title
from actors.process_options import ProcessOptions
from actors.touching import touch
from actors.user_account import Account, unreadable

HEADER = struct.Struct("Q")  # how long the message is that follows; the descriptors come with it
MOST = 64  # descriptors in it; the last one is the working directory
NOW, SPARE = b"n", b"s"  # what the request for it says: it is awaited, or has the time to prepare

_lifeline: int | None = None
_given: list[int] = []


class Orders(msgspec.Struct, frozen=True):
    """What a newborn is to be; see `process.WorkerProcess.start`. `search_path` and `arguments` are what the supervisor
    has just now. `work` is pickled by itself, since only here it may be found what it is made of."""

    search_path: list[str]
    arguments: list[str]
    title: str
    options: ProcessOptions
    run_as: Account | None
    work: bytes


# The function to run, its arguments, and what is called first; see there too.
Work = tuple[Callable[..., object], Sequence[object], Callable[[], object] | None]


def live(packet: bytes, fds: list[int], server: int) -> int:
    """What every worker process runs. Returns its exit code; `server` is the pid of the fork server."""
    lifeline, words, told = fds
    arm_parent_death(lifeline, server)
    last_words.listen(words)
    os.setsid()
    hygiene.reset_signals()
    set_title("ringleader: spare")
    orphans.mark()
    if packet == SPARE:
        touch()
        # failpoint: spare-waits
    message = _hear(told)
    hygiene.keep_descriptors()
    user = None
    try:
        orders: Orders = pickle.loads(message)
        user = orders.options.user
        sys.path, sys.argv = orders.search_path, orders.arguments
        _enter(_given.pop())
        set_title(orders.title)
        target, args, first = _work(orders)
        given = [] if first is None else [first()]
        hygiene.apply(orders.options, orders.run_as)
        if user is not None:
            arm_parent_death(lifeline, server)  # a change of user disarms it
        code = target(*args, *given)
    except hygiene.OptionRefused as refused:
        last_words.say(words, refused)
        os._exit(WorkerExit.START_FAILED)
    except Exception as error:
        closed = unreadable() if user is not None and isinstance(error, ImportError) else []
        if closed:
            why = f"{error}, and this user may not look into {', '.join(closed)}"
            last_words.say(words, hygiene.OptionRefused("user", user, why))
            os._exit(WorkerExit.START_FAILED)
        last_words.say(words, error)
        raise
    return code if isinstance(code, int) else 0


def _enter(directory: int) -> None:
    """The supervisor's working directory comes as a descriptor, which leads there also when it was moved or removed."""
    os.fchdir(directory)
    os.close(directory)


def _work(orders: Orders) -> Work:
    work: Work = pickle.loads(orders.work)
    return work


def inherited() -> list[int]:
    """In a worker: its copies of the descriptors that it was started with, in their order."""
    return list(_given)


def arm_parent_death(lifeline: int | None = None, server: int | None = None) -> None:
    """In a worker: from now on the kernel kills this process the moment its supervisor is gone.

    `lifeline` is the read end of a pipe whose write end only the supervisor has, `server` the pid of the fork server.
    No code of this process takes part in dying, so a process that is stopped, or spins in C with the interpreter lock
    held, dies too. Every worker is armed before its target runs; a call without arguments only looks again.

    - End-of-file on the lifeline raises a signal (O_ASYNC), and the signal is SIGKILL (F_SETSIG).
    - The fork server goes down with the supervisor as well, and its children by PR_SET_PDEATHSIG.
    - Neither looks back in time: whoever died before is found by looking afterwards.
    """
    global _lifeline
    if lifeline is not None:
        _lifeline = lifeline
        if hasattr(fcntl, "F_SETSIG"):
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        else:
            # The second best: it needs the interpreter lock to come around.
            threading.Thread(target=_die_at_end_of_file, args=(lifeline,), name="lifeline", daemon=True).start()
    if server is not None:
        die_with_parent()
    gone = _lifeline is not None and _readable(_lifeline)
    if gone or (server is not None and os.getppid() != server):
        os._exit(WorkerExit.ORPHANED)


def _hear(descriptor: int) -> bytearray:
    """The message, as soon as it is there."""
    with socket.socket(fileno=descriptor) as told:
        header, fds, _, _ = socket.recv_fds(told, HEADER.size, MOST)
        if len(header) < HEADER.size:
            os._exit(WorkerExit.ORPHANED)  # nobody needs it any more
        _given[:] = fds
        message = bytearray(HEADER.unpack(header)[0])
        rest = memoryview(message)
        while rest:
            count = told.recv_into(rest)
            if not count:
                os._exit(WorkerExit.ORPHANED)
            rest = rest[count:]
    return message


def _readable(fd: int) -> bool:
    look = select.poll()
    look.register(fd, select.POLLIN)
    return bool(look.poll(0))


def _die_at_end_of_file(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
