"""The fork server: a process with the runtime imported and no threads, of which every worker is a fork.

Above it is the guardian, which takes along what the workers have started. The library's fork server, launched in our
own way. What that adds:
- It imports with this program's `sys.path`, so the modules to preload are found wherever they come from.
- It dies with the supervisor at any moment, also while it is still importing, stopped or stuck: the kernel kills it.
- It never hears the signals that a terminal or a service manager sends to everyone.
- It is ours: neither preloading nor stopping it concerns other users of the library in this process.
"""

from __future__ import annotations

import inspect
import os
import signal
import socket
import time
from collections.abc import Sequence

from multiprocess import connection, forkserver, resource_tracker, spawn, util

from actors import guardian
from actors.exits import signal_name
from actors.orphans import MARK, UNMARKED

EXEC_FAILED = 255  # what a process ends with that was to become another program, and could not
IMPORTING = 30.0  # seconds that a new fork server may take to import; it takes less than one
CLEANING = 2.0  # seconds for the guardian to kill what a dead fork server left
HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what a terminal or a service manager sends to everyone

# What it runs. The lifeline comes first: from then on it does not outlive the supervisor (`process.arm_parent_death`).
# The signal goes to one process only, so until there are two it goes to the one that becomes the guardian.
# The library's pipe for that purpose, `alive`, is not enough: its write end travels in every request, and as long as
# the fork server is busy importing, a request that waits for it keeps the pipe open.
# Whoever imports in vain here does so again in the worker, where the error is seen.
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
for module in {preload!r}:
    try:
        __import__(module)
    except Exception:
        pass
import gc
gc.collect()
gc.freeze()
from multiprocess import forkserver
forkserver._forkserver._forkserver_pid = os.getpid()  # for its children to compare with
forkserver.main({listener}, {alive}, [])
"""


class ForkServer(forkserver.ForkServer):  # type: ignore[misc]  # the library has no types
    """One fork server and, when it died, its successor. `preload` is what the next one imports.

    The process that is launched and waited for is the guardian, if there is one; it ends with its fork server.
    """

    preload: Sequence[str] = ()
    _forkserver_address: str | None
    _forkserver_alive_fd: int | None
    _forkserver_pid: int | None
    _lifeline: int | None = None
    _status = 0  # how the last one ended, as `waitpid` tells it
    _launched = 0.0
    answered = False  # it has forked a worker, so it is not importing any more

    @property
    def pid(self) -> int | None:
        """The pid of the guardian of the one that was launched last; None before, and after `stop`."""
        return self._forkserver_pid

    def ensure_running(self) -> None:
        """Launch it unless it lives. The library calls this too, before each fork."""
        with self._lock:
            resource_tracker.ensure_running()
            if self._forkserver_pid is not None:
                if self._lives(self._forkserver_pid):
                    return
                self.disown()
            self._launch()

    def connect_to_new_process(self, fds: Sequence[int]) -> tuple[int, int]:
        try:
            answer: tuple[int, int] = super().connect_to_new_process(fds)
        except (ConnectionRefusedError, BrokenPipeError):
            # It is dead, or dies with the request not taken, and its guardian is about to clean up.
            self.stop(CLEANING)
            try:
                answer = super().connect_to_new_process(fds)
            except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):  # before, or in the middle of it
                raise ConnectionRefusedError(self.post_mortem()) from None
        return answer

    def may_import(self) -> bool:
        """It is so new that it may be busy with that, be the machine ever so slow."""
        return not self.answered and time.monotonic() - self._launched < IMPORTING

    def wake(self) -> None:
        """Have it go on if it was stopped, its guardian too."""
        with self._lock:
            if self._forkserver_pid is not None and self._lives(self._forkserver_pid):
                _wake(self._forkserver_pid)

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
            pid = self._forkserver_pid
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

    def disown(self, unlink: bool = True) -> None:
        """Let go of it, which ends it unless another process holds its lifeline, too."""
        for fd in (self._lifeline, self._forkserver_alive_fd):
            if fd is not None:
                os.close(fd)
        if unlink and self._forkserver_address is not None:
            try:
                os.unlink(self._forkserver_address)
            except OSError:
                pass  # the program's temporary directory was removed already
        self._lifeline = self._forkserver_alive_fd = self._forkserver_pid = self._forkserver_address = None

    def _launch(self) -> None:
        path = spawn.get_preparation_data("fork server")["sys_path"]
        with socket.socket(socket.AF_UNIX) as listener:
            address = connection.arbitrary_address("AF_UNIX")  # in a directory of this user's own
            listener.bind(address)
            os.chmod(address, 0o600)
            listener.listen()
            lifeline_read, lifeline = os.pipe()
            alive_read, alive = os.pipe()
            code = _BOOT.format(
                lifeline=lifeline_read,
                alive=alive_read,
                listener=listener.fileno(),
                path=path,
                preload=list(self.preload),
            )
            executable = spawn.get_executable()
            command = [executable, *util._args_from_interpreter_flags(), "-c", inspect.getsource(guardian) + code]
            # Blocked signals stay blocked across fork and exec, so there is no moment in which it could hear one.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
            os.putenv(MARK, UNMARKED)  # a place for the mark of each worker
            try:
                pid = util.spawnv_passfds(executable, command, [listener.fileno(), alive_read, lifeline_read])
            except BaseException:
                os.close(alive)
                os.close(lifeline)
                raise
            finally:
                _restore_variable(MARK)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                os.close(alive_read)
                os.close(lifeline_read)
        self._lifeline, self._forkserver_alive_fd = lifeline, alive
        self._forkserver_address, self._forkserver_pid = address, pid
        self._launched, self.answered = time.monotonic(), False


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
