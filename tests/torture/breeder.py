"""Systems forked from a process that has everything imported: what starts them a hundred times need not wait for that.

A breeder's systems die with it, and it ends with whoever started it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.actors.waiting import DEADLINE

ORPHANS = 2.0  # seconds that a process may outlive its supervisor
_PR_SET_PDEATHSIG = 1


class Breeder:
    """`command` runs `breed`. The systems are processes of nobody here, so they are watched by pidfd."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def another(self) -> Bred | None:
        """Starts one; None if it died so soon that it cannot be watched."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("another\n")
        self._process.stdin.flush()
        try:
            return Bred(int(self._process.stdout.readline()))
        except ProcessLookupError:
            return None

    def close(self) -> None:
        self._process.communicate()


class Bred:
    """A process with a system."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def dead(self, seconds: float = 0.0) -> bool:
        """Whether it is, within so many seconds."""
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def signal(self, number: int) -> None:
        """It may have died just before; nobody else gets it then."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """Proven dead when this returns. Idempotent."""
        if self._pidfd < 0:
            return
        self.signal(signal.SIGKILL)
        assert self.dead(DEADLINE), f"process {self.pid} still lives after SIGKILL"  # it may wait for a slow disk
        os.close(self._pidfd)
        self._pidfd = -1


def breed(log: Path, serve: Callable[[], object]) -> None:
    """Forks a process that runs `serve` for each line on standard input, and tells which."""
    me = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                    os.dup2(old, new)
                if os.getppid() == me:
                    serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        print(pid, flush=True)
