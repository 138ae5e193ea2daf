"""The fork server: a process with the runtime imported and no threads, of which every worker is a fork.

Above it is the guardian, which takes along what the workers have started; what it does is in `forking`. What holds:
- It imports with this program's `sys.path`, so the modules to preload are found wherever they come from. Those it is
  told once it is made sure that it runs; so it may be launched before they are known (`launch_ahead`).
- It dies with the supervisor at any moment, also while it is still importing, stopped or stuck: the kernel kills it.
- It never hears the signals that a terminal or a service manager sends to everyone.
- Requests go by a socket that only this process has. A program that is forked lets go of it (`disown`).
"""

from __future__ import annotations

import linecache
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from multiprocess import spawn, util

from actors import guardian
from actors.exits import signal_name
from actors.forking import IMPORT, SEPARATOR
from actors.newborn import NOW
from actors.orphans import MARK, UNMARKED

EXEC_FAILED = 255  # what a process ends with that was to become another program, and could not
IMPORTING = 30.0  # seconds that a new fork server may take to import; it takes less than one
AT_ONCE = 100  # names of modules in a packet
CLEANING = 2.0  # seconds for the guardian to kill what a dead fork server left
HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what a terminal or a service manager sends to everyone

# What it runs. The lifeline comes first: from then on it does not outlive the supervisor (`newborn.arm_parent_death`).
# The signal goes to one process only, so until there are two it goes to the one that becomes the guardian.
# Where the kernel has no such signal, the end of the socket for requests is the end of the fork server too.
_BOOT = """
import fcntl, sys
lifeline = {lifeline}
def arm():
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    look = select.poll()
    look.register(lifeline, select.POLLIN)
    if look.poll(0):
        os._exit(0)
arm()
guard(lifeline)
arm()
set_title("ringleader: fork server")
ends = [lifeline]
os.register_at_fork(after_in_child=lambda: ends and os.close(ends.pop()))
sys.path[:] = {path!r}
import gc
gc.disable()
from actors import forking, newborn, touching, worker
touching.note()
gc.freeze()
gc.enable()
forking.serve({requests}, newborn.live)
"""


class ForkServer:
    """One fork server and, when it died, its successor. `preload` is what the next one imports beside the runtime.

    The process that is launched and waited for is the guardian, if there is one; it ends with its fork server.
    """

    preload: Sequence[str] = ()
    answered = False  # it has forked a worker, so it is not importing any more
    ahead = False  # it was launched ahead, and nobody has asked it for a process
    starts = 0  # that are under way and may need it

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pid: int | None = None
        self._lifeline: int | None = None
        self._requests: socket.socket | None = None
        self._status = 0  # how the last one ended, as `waitpid` tells it
        self._launched = 0.0
        self._untold = False  # it does not know what to preload

    @property
    def pid(self) -> int | None:
        """The pid of the guardian of the one that was launched last; None before, and after `stop`."""
        return self._pid

    def launch_ahead(self) -> None:
        """Launch it unless it lives, when it is not known yet what it is to preload, nor whether it is needed."""
        with self._lock:
            if self._launch_unless_it_lives():
                self.ahead = True

    def ensure_running(self) -> None:
        """Launch it unless it lives."""
        with self._lock:
            self._launch_unless_it_lives()
            with suppress(OSError):  # it is told again with the next request
                self._tell_preload()

    def drop_ahead(self) -> None:
        """End it if it was launched ahead and nobody has asked it for a process."""
        with self._lock:
            if self.ahead:
                self.stop(CLEANING)

    def request(self, fds: Sequence[int], packet: bytes = NOW) -> None:
        """Ask for a process, as `forking` has it: one that is needed NOW, or a SPARE. The descriptors are copied."""
        with self._lock:
            self.ensure_running()
            self.ahead = False
            try:
                self._send(fds, packet)
            except ConnectionError:
                # It is dead, or dies with the request not taken, and its guardian is about to clean up.
                self.stop(CLEANING)
                self.ensure_running()
                try:
                    self._send(fds, packet)
                except ConnectionError:
                    raise ConnectionRefusedError(self.post_mortem()) from None

    def _send(self, fds: Sequence[int], packet: bytes) -> None:
        assert self._requests is not None
        self._tell_preload()
        socket.send_fds(self._requests, [packet], fds)

    def _tell_preload(self) -> None:
        if self._untold and self._requests is not None:
            for at in range(0, len(self.preload), AT_ONCE):
                names = SEPARATOR.join(self.preload[at : at + AT_ONCE])
                self._requests.send(IMPORT + names.encode())
            self._untold = False

    def may_import(self) -> bool:
        """It is so new that it may be busy with that, be the machine ever so slow."""
        return not self.answered and time.monotonic() - self._launched < IMPORTING

    def wake(self) -> None:
        """Have it go on if it was stopped, its guardian too."""
        with self._lock:
            if self._pid is not None and self._lives(self._pid):
                _wake(self._pid)

    def post_mortem(self) -> str:
        """Of one that has ended, or is about to: waits for that, and says how it was."""
        self.stop(CLEANING)
        code = os.waitstatus_to_exitcode(self._status)
        text = f"it ended with exit status {code}" if code >= 0 else f"it was killed by {signal_name(-code)}"
        if code == EXEC_FAILED:
            text += f", as where {os.fsdecode(spawn.get_executable())} cannot be executed by this user"
        return text

    def stop(self, timeout: float) -> None:
        """End it, if it runs. Its workers, if it has any, are killed by the kernel."""
        with self._lock:
            pid = self._pid
            if pid is None:
                return
            self.disown()
            _wake(pid)  # a guardian that is stopped could not clean up
            deadline = time.monotonic() + timeout
            while self._lives(pid):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)  # our own child, and not waited for: the pid is still its own
                time.sleep(0.002)

    def _lives(self, pid: int) -> bool:
        """Whether this child of ours lives. Reaps it if not."""
        try:
            dead, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return False  # somebody else in this process waited for it
        if dead:
            self._status = status
        return not dead

    def disown(self) -> None:
        """Let go of it, which ends it unless another process holds its lifeline, too."""
        if self._lifeline is not None:
            os.close(self._lifeline)
        if self._requests is not None:
            self._requests.close()
        self._lifeline = self._requests = self._pid = None

    def _launch_unless_it_lives(self) -> bool:
        """Whether it had to be launched."""
        if self._pid is not None:
            if self._lives(self._pid):
                return False
            self.disown()
        self._launch()
        return True

    def _launch(self) -> None:
        requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline_read, lifeline = os.pipe()
        with theirs:
            code = _BOOT.format(lifeline=lifeline_read, requests=theirs.fileno(), path=search_path())
            guard = "".join(linecache.getlines(guardian.__file__, vars(guardian)))
            executable = os.fsencode(spawn.get_executable())
            command: list[str | bytes] = [executable, *_flags(), "-c", guard + code]
            # Blocked signals stay blocked across fork and exec, so there is no moment in which it could hear one.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
            os.putenv(MARK, UNMARKED)  # a place for the mark of each worker
            try:
                pid = util.spawnv_passfds(executable, command, [theirs.fileno(), lifeline_read])
            except BaseException:
                os.close(lifeline)
                requests.close()
                raise
            finally:
                _restore_variable(MARK)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                os.close(lifeline_read)
        requests.setblocking(False)  # one that is stopped takes so many requests, and no more
        self._lifeline, self._requests, self._pid = lifeline, requests, pid
        self._launched, self.answered = time.monotonic(), False
        self._untold, self.ahead = True, False


def search_path() -> list[str]:
    """Where this program finds modules, as another process may be told."""
    return [path or _DIRECTORY for path in sys.path]


def _flags() -> list[str]:
    """With which this interpreter was started."""
    return list(vars(util)["_args_from_interpreter_flags"]())


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


_DIRECTORY = _directory()  # that of the start: what was imported from "" until now was imported from there


def _wake(pid: int) -> None:
    """Have this guardian of ours, and its fork server, go on if they were stopped."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, signal.SIGCONT)
        except OSError:
            pass  # gone; or there is no guardian here, which would lead a group


def _restore_variable(name: str) -> None:
    """`putenv` has changed what programs inherit, not `os.environ`."""
    if name in os.environ:
        os.putenv(name, os.environ[name])
    else:
        os.unsetenv(name)
