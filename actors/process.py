"""Worker processes: forked from a warm server, watched by pidfd, gone the moment their supervisor is gone.

What holds:
- Starting is a fork of a process that has the runtime imported already, so it takes milliseconds; every wait in it is
  bounded. The program's own `__main__` is not imported in the worker: handlers travel as cloudpickle bytes.
- `poll` says how a process ended only when the kernel has proven that it did.
- A worker does not outlive its supervisor, whatever either of them is doing: the kernel kills it (`newborn`).
- A worker leads a session and process group of its own: Ctrl-C in the terminal reaches the supervisor only, and `kill`
  reaches the processes that the worker started, without ever hitting one that merely got the same number later. What
  has left the group is found by its mark (`orphans`), and ends at the latest with the supervisor (`guardian`).
- What it is to be granted is applied before its target runs (`hygiene`), and it is heard when it crashes
  (`last_words`).
- One process may be born ahead of its time, a spare (`keep_spare`): the next start only tells it what it is to be.
  Until then it is no worker: it has run nothing of the user's that the fork server has not, and ends when it is let
  go of.

What the fork server shares with its children is the supervisor's environment, working directory and standard streams.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from actors.birth import Birth, NoProcess, read, readable
from actors.errors import RingleaderError
from actors.exits import WorkerExit
from actors.forking import NUMBER
from actors.forkserver import ForkServer, search_path
from actors.newborn import SPARE, Orders, Work
from actors.orphans import sweep
from actors.process_options import ProcessOptions
from actors.user_account import Account

AS_IT_IS = ProcessOptions()
WAKE_AFTER = 1.0  # seconds until a fork server that does not answer is taken for stopped, and told to go on
LAUNCH_TIMEOUT = 5.0  # seconds until it is taken for stuck, and ended
FIRST_TIMEOUT = (
    10.0  # seconds for the first answer of a new one, which imports first; the next launch may have more luck
)
STATUS_TIMEOUT = 5.0  # seconds for it to pass on the exit code of a process that is dead already
_TO_PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class LaunchFailed(RingleaderError):
    """The fork server could not start a process. Nothing of it runs, or will."""

    def __init__(self, title: str, why: str) -> None:
        super().__init__(title, why)
        self.title, self.why = title, why

    def __str__(self) -> str:
        return f"{self.title!r} could not be launched: {self.why}"


_server = ForkServer()
_spare: Birth | None = None
_guard = threading.RLock()  # of both
_live: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """One worker process, seen from its supervisor.

    `pid`    names it in messages; signals go through the pidfd, which can never mean anybody else
    `pidfd`  becomes readable when it is dead; for selectors
    """

    def __init__(self, title: str, birth: Birth) -> None:
        self.pid, self.pidfd = birth.pid, birth.pidfd
        self.title = title
        self._birth = birth
        self._lock = threading.Lock()  # of the descriptors, against being closed while another thread uses them
        self._code: int | None = None
        self._swept = False
        _live.add(self)

    @classmethod
    def start(
        cls,
        target: Callable[..., object],
        args: Sequence[object] = (),
        title: str = "ringleader: worker",
        *,
        pass_fds: Sequence[int] = (),
        options: ProcessOptions = AS_IT_IS,
        run_as: Account | None = None,
        first: Callable[[], object] | None = None,
    ) -> Self:
        """Run `target(*args)` in a new process; an int it returns is the exit code.

        `run_as`: the user of `options`, looked up already. `first` is called before the options are applied, with the
        rights of this process, and what it returns follows the other arguments.

        `target` is a function of an importable module. Returns when the process exists, not when it is up. The process
        gets copies of `pass_fds`, which it finds by `inherited()`; the caller keeps its own. If one of the options
        cannot be applied, it ends with START_FAILED, and `words` says why.

        A fork server that does not answer is first told to go on, for it may have been stopped. If that does not help
        it is ended, and the next start brings a new one. Its workers go down with it, as the kernel sees to, and have
        done nothing; but a system that can never again restart anybody is worse. Only a new one is left to import.
        """
        message = _orders(target, args, title, options, run_as, first)
        here = os.open(".", os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY))
        try:
            return cls._start(message, title, [*pass_fds, here])
        finally:
            os.close(here)

    @classmethod
    def _start(cls, message: bytes, title: str, fds: Sequence[int]) -> Self:
        spare = _take_spare()
        if spare is not None:
            try:
                spare.wake()  # it may have been stopped meanwhile
                spare.tell(message, fds, time.monotonic() + LAUNCH_TIMEOUT)
                # failpoint: spare-told
                return cls(title, spare)
            except BaseException as problem:
                spare.close()  # it has died meanwhile, or hangs; or is told, and nobody is going to look after it
                if not isinstance(problem, OSError):
                    raise
        birth: Birth | None = None
        answered = False
        try:
            with _guard:
                birth = Birth(_server)
                deadline = time.monotonic() + (LAUNCH_TIMEOUT if _server.answered else FIRST_TIMEOUT)
            if not readable(birth.status, min(WAKE_AFTER, deadline - time.monotonic())):
                _server.wake()
            birth.await_pid(deadline)
            answered = _server.answered = True
            birth.tell(message, fds, deadline)
            return cls(title, birth)
        except BaseException as problem:
            # Closing our ends makes sure that a process that was forked nevertheless ends by itself.
            if birth is not None:
                birth.close()
            if not isinstance(problem, OSError | EOFError):
                raise
            if isinstance(problem, NoProcess):
                raise LaunchFailed(title, f"no process can be forked ({problem.strerror})") from problem
            why = str(problem)
            if birth is not None and not answered:
                with _guard:
                    importing = isinstance(problem, TimeoutError) and _server.may_import()
                    if _server.pid == birth.guardian and not importing:  # nor one that another thread has launched
                        told = _server.post_mortem()
                        why = f"{why}, so it was ended" if isinstance(problem, TimeoutError) else told
            raise LaunchFailed(title, f"the fork server does not answer ({why or 'it has ended'})") from problem

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it is not proven dead.

        A fork server that is late with it, or was stopped, is waited for, and told to go on, as at a start: without the
        code a clean end is none, and nobody knows which message was to blame for another one.
        """
        if self._code is None and readable(self.pidfd, 0):
            deadline = time.monotonic() + STATUS_TIMEOUT
            if not readable(self._birth.status, WAKE_AFTER) and self._birth.guardian == _server.pid:
                _server.wake()
            try:
                self._code = NUMBER.unpack(read(self._birth.status, NUMBER.size, deadline))[0]
            except (OSError, EOFError):
                self._code = WorkerExit.LOST  # the fork server, its parent, went down as well, or is stuck
        return self._code

    def kill(self) -> None:
        """SIGKILL to it and to the processes it started; also of use when it is dead already, for those."""
        if not hasattr(signal, "pidfd_send_signal"):
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)
            return
        try:
            # Through the pidfd this is the group of that very process even after its death.
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL, None, _TO_PROCESS_GROUP)
        except ProcessLookupError:
            pass  # no group yet, or nobody left in it
        except OSError:
            # An older kernel. The number of the group is safe to use as long as its leader is not reaped.
            if self.poll() is None and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except OSError:
            pass  # dead; also what a descriptor that is not a pidfd answers, and there is one only for the dead
        self._sweep()

    def words(self) -> str:
        """What it left when it crashed, or could not be set up; see `reasons` for what to make of it."""
        return self._birth.words.read()

    @contextmanager
    def borrowed(self) -> Iterator[tuple[int, int]]:
        """Copies of its pidfd and of what its words are written to, for another thread than the one that may close it.

        ValueError if it is closed.
        """
        with self._lock:
            if self.pidfd < 0:
                raise ValueError(f"{self.title} is closed")
            fds = os.dup(self.pidfd), os.dup(self._birth.words.fd)
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Let go of it. Idempotent. The kernel kills what still lives: its lifeline ends."""
        if self.pidfd >= 0:
            self._sweep()
            _live.discard(self)
            self._forget()

    def _sweep(self) -> None:
        """Once it is dead, what it started and has left its group is killed."""
        if not self._swept and self.poll() is not None:
            self._swept = True
            sweep(self.pid, self._birth.guardian)

    def _forget(self) -> None:
        with self._lock:
            self._birth.close()
            self.pidfd = -1


def start_forkserver(preload: Sequence[str] | None = None) -> None:
    """Make sure that the fork server runs. One that has to be launched, now or later, or was launched ahead, imports
    these modules beside the runtime; by default those that were said last."""
    with _guard:
        if preload is not None:
            _server.preload = preload
        _server.ensure_running()


@contextmanager
def forkserver_ahead() -> Iterator[None]:
    """Around a start: the fork server is launched at once, and comes up while all else is looked at and made. If
    nothing comes of the start, and nobody else has a use for it, it ends."""
    server = _server
    with _guard:
        server.starts += 1
        with suppress(OSError):  # whoever needs it tries again, and tells
            server.launch_ahead()
    try:
        yield
    except BaseException:
        with _guard:
            if server.starts == 1:
                server.drop_ahead()
        raise
    finally:
        with _guard:
            server.starts -= 1


def keep_spare() -> None:
    """Have a process ready for the next start, if the fork server runs. To be called again and again while nothing else
    is to do: it does not wait for anything, and looks after the one that there is."""
    global _spare
    with _guard:
        if _spare is not None and not (_spare.well and _spare.guardian == _server.pid):
            drop_spare()
        elif _spare is None and _server.answered:
            try:
                _spare = Birth(_server, SPARE)
            except OSError:
                return  # then a start has none, and tells why


def drop_spare() -> None:
    """Let go of it, if there is one, and it ends."""
    global _spare
    with _guard:
        if _spare is not None:
            # failpoint: spare-let-go
            _spare.close()
            _spare = None


def _take_spare() -> Birth | None:
    """For a start, if there is one that is known to live."""
    global _spare
    with _guard:
        spare, _spare = _spare, None
        if spare is None or (spare.well and spare.pid and spare.guardian == _server.pid):
            return spare
        spare.close()
        return None


def stop_forkserver(timeout: float = 2.0) -> None:
    """End the fork server, if it runs; the next start brings a new one. Refused while one of its workers lives."""
    with _guard:
        living = [process.title for process in _live if process.poll() is None]
        if living:
            raise RuntimeError(
                f"the fork server cannot be stopped, it would take its workers along: {', '.join(living)}"
            )
        drop_spare()
        _server.stop(timeout)


def _orders(
    target: Callable[..., object],
    args: Sequence[object],
    title: str,
    options: ProcessOptions,
    run_as: Account | None,
    first: Callable[[], object] | None,
) -> bytes:
    """The program's main module is none of it: importing it again would run the program once more wherever it has no
    guard, and classes defined there would exist twice."""
    work: Work = (target, tuple(args), first)
    packed = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
    orders = Orders(search_path(), sys.argv, title, options, run_as, packed)
    return pickle.dumps(orders, pickle.HIGHEST_PROTOCOL)


def _after_fork_in_child() -> None:
    """A fork of the supervisor is not the supervisor: it must not keep the workers' lifelines or the fork server up."""
    global _server, _guard
    _guard = threading.RLock()  # that nobody holds
    for process in list(_live):
        process._forget()
    _live.clear()
    drop_spare()
    _server.disown()
    _server = ForkServer()


os.register_at_fork(after_in_child=_after_fork_in_child)
