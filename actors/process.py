"""Worker processes: forked from a warm server, watched by pidfd, gone the moment their supervisor is gone.

What holds:
- Starting is a fork of a process that has the runtime imported already, so it takes milliseconds; every wait in it is
  bounded. The program's own `__main__` is not imported in the worker: handlers travel as cloudpickle bytes.
- `poll` says how a process ended only when the kernel has proven that it did.
- A worker does not outlive its supervisor, whatever either of them is doing: the kernel kills it (`arm_parent_death`).
- A worker leads a session and process group of its own: Ctrl-C in the terminal reaches the supervisor only, and `kill`
  reaches the processes that the worker started, without ever hitting one that merely got the same number later. What
  has left the group is found by its mark (`orphans`), and ends at the latest with the supervisor (`guardian`).
- What it is to be granted is applied before its target runs (`hygiene`), and it is heard when it crashes
  (`last_words`).

What the fork server shares with its children is the supervisor's environment, working directory and standard streams.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import multiprocess
from multiprocess import forkserver, reduction, spawn
from multiprocess.context import set_spawning_popen

from actors import hygiene, last_words, orphans
from actors.errors import RingleaderError
from actors.exits import WorkerExit
from actors.forkserver import ForkServer
from actors.guardian import die_with_parent, set_title
from actors.process_options import ProcessOptions
from actors.user_account import Account, unreadable

AS_IT_IS = ProcessOptions()
PRELOAD = ("actors.worker",)
WAKE_AFTER = 1.0  # seconds until a fork server that does not answer is taken for stopped, and told to go on
LAUNCH_TIMEOUT = 5.0  # seconds until it is taken for stuck, and ended
FIRST_TIMEOUT = (
    10.0  # seconds for the first answer of a new one, which imports first; the next launch may have more luck
)
STATUS_TIMEOUT = 1.0  # seconds for the fork server to pass on the exit code of a process that is dead already
_TO_PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class LaunchFailed(RingleaderError):
    """The fork server could not start a process. Nothing of it runs, or will."""

    def __init__(self, title: str, why: str) -> None:
        super().__init__(title, why)
        self.title, self.why = title, why

    def __str__(self) -> str:
        return f"{self.title!r} could not be launched: {self.why}"


_server = ForkServer()
_guard = threading.RLock()
_live: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """One worker process, seen from its supervisor.

    `pid`    names it in messages; signals go through the pidfd, which can never mean anybody else
    `pidfd`  becomes readable when it is dead; for selectors
    """

    def __init__(
        self, pid: int, title: str, lifeline: int, data: int, status: int, words: last_words.LastWords, guardian: int
    ) -> None:
        self.pid = pid
        self.title = title
        self._words = words
        self._guardian = guardian
        self._lock = threading.Lock()  # of the descriptors, against being closed while another thread uses them
        self._lifeline = lifeline  # the only write end of a pipe: its end-of-file tells the worker that we are gone
        self._data = data  # the same for the library's own `parent_process()` in the worker
        self._status = status  # the exit code comes out of it
        self._code: int | None = None
        try:
            self.pidfd = os.pidfd_open(pid)
        except (AttributeError, ProcessLookupError):
            # No pidfd on this system, or dead and reaped already: then the arrival of its exit code says so.
            self.pidfd = os.dup(status)
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
        fds: list[int] = []
        guardian: int | None = None
        answered = False
        words = last_words.LastWords()
        try:
            with _guard:
                start_forkserver()
                message = _message(target, args, title, _Setup(options, run_as, first))
                lifeline_read, lifeline = os.pipe()
                fds.append(lifeline)
                try:
                    status, data = _server.connect_to_new_process([lifeline_read, words.fd, *pass_fds])
                finally:
                    os.close(lifeline_read)
                fds += [status, data]
                guardian = _server.pid
                deadline = time.monotonic() + (LAUNCH_TIMEOUT if _server.answered else FIRST_TIMEOUT)
            # From here on, closing our ends makes sure that a process that was forked nevertheless ends by itself.
            if not _readable(status, min(WAKE_AFTER, deadline - time.monotonic())):
                _server.wake()
            pid = forkserver.SIGNED_STRUCT.unpack(_read(status, forkserver.SIGNED_STRUCT.size, deadline))[0]
            answered = _server.answered = True
            _write(data, message, deadline)
            return cls(pid, title, lifeline, data, status, words, guardian or 0)
        except BaseException as problem:
            words.close()
            for fd in fds:
                os.close(fd)
            if not isinstance(problem, OSError | EOFError):
                raise
            why = str(problem)
            if guardian is not None and not answered:
                with _guard:
                    importing = isinstance(problem, TimeoutError) and _server.may_import()
                    if _server.pid == guardian and not importing:  # nor another one, which another thread has launched
                        told = _server.post_mortem()
                        why = f"{why}, so it was ended" if isinstance(problem, TimeoutError) else told
            raise LaunchFailed(title, f"the fork server does not answer ({why or 'it has ended'})") from problem

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it is not proven dead."""
        if self._code is None and _readable(self.pidfd, 0):
            try:
                deadline = time.monotonic() + STATUS_TIMEOUT
                code = _read(self._status, forkserver.SIGNED_STRUCT.size, deadline)
                self._code = forkserver.SIGNED_STRUCT.unpack(code)[0]
            except (OSError, EOFError):
                self._code = WorkerExit.LOST  # the fork server, its parent, went down as well
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
        return self._words.read()

    @contextmanager
    def borrowed(self) -> Iterator[tuple[int, int]]:
        """Copies of its pidfd and of what its words are written to, for another thread than the one that may close it.

        ValueError if it is closed.
        """
        with self._lock:
            if self.pidfd < 0:
                raise ValueError(f"{self.title} is closed")
            fds = os.dup(self.pidfd), os.dup(self._words.fd)
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
        if self._guardian and self.poll() is not None:
            guardian, self._guardian = self._guardian, 0
            orphans.sweep(self.pid, guardian)

    def _forget(self) -> None:
        with self._lock:
            for fd in (self.pidfd, self._status, self._data, self._lifeline):
                os.close(fd)
            self.pidfd = self._status = self._data = self._lifeline = -1
            self._words.close()


def start_forkserver(preload: Sequence[str] | None = None) -> None:
    """Make sure that the fork server runs. One that has to be launched, now or later, imports these modules first; by
    default those that were said last, or the runtime."""
    with _guard:
        if preload is not None or not _server.preload:
            _server.preload = (__name__, *(PRELOAD if preload is None else preload))
        _server.ensure_running()


def stop_forkserver(timeout: float = 2.0) -> None:
    """End the fork server, if it runs; the next start brings a new one. Refused while one of its workers lives."""
    with _guard:
        living = [process.title for process in _live if process.poll() is None]
        if living:
            raise RuntimeError(
                f"the fork server cannot be stopped, it would take its workers along: {', '.join(living)}"
            )
        _server.stop(timeout)


def arm_parent_death(lifeline: int | None = None, server: int | None = None) -> None:
    """In a worker: from now on the kernel kills this process the moment its supervisor is gone.

    `lifeline` is the read end of a pipe whose write end only the supervisor has, `server` the pid of the fork server.
    No code of this process takes part in dying, so a process that is stopped, or spins in C with the interpreter lock
    held, dies too. Every worker is armed before its target runs; a call without arguments only looks again.

    - End-of-file on the lifeline raises a signal (O_ASYNC), and the signal is SIGKILL (F_SETSIG).
    - The fork server goes down with the supervisor as well, and its children by PR_SET_PDEATHSIG. For that no worker
      may keep the descriptor that keeps the fork server up.
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
        alive, forkserver._forkserver._forkserver_alive_fd = forkserver._forkserver._forkserver_alive_fd, None
        if alive is not None:
            os.close(alive)
    if server is not None:
        die_with_parent()
    gone = _lifeline is not None and _readable(_lifeline, 0)
    if gone or (server is not None and os.getppid() != server):
        os._exit(WorkerExit.ORPHANED)


_lifeline: int | None = None


def inherited() -> list[int]:
    """In a worker: its copies of the descriptors that it was started with, in their order."""
    return list(forkserver.get_inherited_fds()[2:])


def _die_at_end_of_file(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class _Setup:
    options: ProcessOptions
    run_as: Account | None
    first: Callable[[], object] | None


def _run(title: str, setup: _Setup, target: Callable[..., object], args: Sequence[object]) -> None:
    """What every worker process runs first."""
    lifeline, words = forkserver.get_inherited_fds()[:2]
    server, forkserver._forkserver._forkserver_pid = forkserver._forkserver._forkserver_pid, None
    arm_parent_death(lifeline, server)
    last_words.listen(words)
    os.setsid()
    hygiene.reset_signals()
    hygiene.keep_descriptors()
    set_title(title)
    orphans.mark()
    try:
        given = [] if setup.first is None else [setup.first()]
        hygiene.apply(setup.options, setup.run_as)
        if setup.options.user is not None:
            arm_parent_death(lifeline, server)  # a change of user disarms it
        code = target(*args, *given)
    except hygiene.OptionRefused as refused:
        last_words.say(words, refused)
        os._exit(WorkerExit.START_FAILED)
    except Exception as error:
        closed = unreadable() if setup.options.user is not None and isinstance(error, ImportError) else []
        if closed:
            why = f"{error}, and this user may not look into {', '.join(closed)}"
            last_words.say(words, hygiene.OptionRefused("user", setup.options.user, why))
            os._exit(WorkerExit.START_FAILED)
        last_words.say(words, error)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _message(target: Callable[..., object], args: Sequence[object], title: str, options: _Setup) -> bytes:
    """What the new process reads first: how to set up the library, and what to run."""
    # Without what the library would have it do first, namely to import the program's main module again: this would run
    # the program once more wherever it has no guard, and classes defined there would exist twice.
    setup: dict[str, Any] = spawn.get_preparation_data(title)
    for key in ("init_main_from_name", "init_main_from_path"):
        setup.pop(key, None)
    run = (title, options, target, tuple(args))
    process = multiprocess.get_context("forkserver").Process(target=_run, args=run, name=title)
    buffer = io.BytesIO()
    set_spawning_popen(process)  # the library's keys may only be pickled for a child
    try:
        reduction.dump(setup, buffer)
        reduction.dump(process, buffer)
    finally:
        set_spawning_popen(None)
    return buffer.getvalue()


def _readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0, timeout) * 1000))


def _read(fd: int, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        if not _readable(fd, deadline - time.monotonic()):
            raise TimeoutError("timed out")
        part = os.read(fd, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _write(fd: int, data: bytes, deadline: float) -> None:
    os.set_blocking(fd, False)
    rest = memoryview(data)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while rest:
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("timed out")
        rest = rest[os.write(fd, rest) :]


def _after_fork_in_child() -> None:
    """A fork of the supervisor is not the supervisor: it must not keep the workers' lifelines or the fork server up."""
    global _server, _guard
    for process in list(_live):
        process._forget()
    _live.clear()
    _server.disown(unlink=False)
    _server, _guard = ForkServer(), threading.RLock()  # with locks that nobody holds


os.register_at_fork(after_in_child=_after_fork_in_child)
