"""The stacks of a system's processes: through its control socket, and where nobody answers there, by py-spy.

py-spy reads the memory of another process and needs nobody's help in it; it is not part of this package. It may need
rights that its user does not have (ptrace_scope): what it says then is passed on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from actors import control_protocol as protocol
from actors.control_client import CannotAsk, NotAnswering, ask
from actors.control_protocol import AskStacks, Refused, Stacks
from actors.control_view import Look
from actors.status_types import Health, SystemStatus

SUPERVISOR: Final = "supervisor"
PY_SPY_TIMEOUT: Final = 10.0
FAILED, NOT_IN_TIME = 1, 6


def look(status: SystemStatus, workers: Sequence[str] = ()) -> list[Look]:
    """Of these workers; without any, of the supervisor and all workers."""
    wanted: list[str | None] = list(workers) if workers else [None, *(worker.name for worker in status.workers)]
    found: list[Look] = []
    deaf = ""
    for worker in wanted:
        if not deaf:
            try:
                found.append(_asked(status, worker))
                continue
            except CannotAsk as error:
                # Once is enough: each further question would wait as long again.
                deaf = error.why if isinstance(error, NotAnswering) else f"it cannot be asked ({error.why})"
        found.append(_from_outside(status, worker, deaf))
    return found


def _asked(status: SystemStatus, worker: str | None) -> Look:
    name = SUPERVISOR if worker is None else worker
    try:
        stacks = ask(Path(status.directory), "stacks", AskStacks(worker), Stacks)
    except Refused as refused:
        pid = _pid(status, worker)
        if refused.error in {protocol.UNKNOWN_WORKER, protocol.BUSY} or pid is None:
            return Look(name=name, pid=pid, problem=refused.text, code=FAILED)
        return _from_outside(status, worker, refused.text)
    return Look(name=name, pid=stacks.pid, stacks=stacks.text)


def _from_outside(status: SystemStatus, worker: str | None, why: str) -> Look:
    name, pid = SUPERVISOR if worker is None else worker, _pid(status, worker)
    if pid is None:
        return Look(name=name, pid=None, problem="it has no process", code=FAILED)
    tool = py_spy()
    if tool is None:
        hint = (
            f"`kill -CONT {pid}` lets it go on" if _stopped(status, worker) else "py-spy can look into it: install that"
        )
        text = f"{why}; {hint}"
        return Look(name=name, pid=pid, problem=text, code=NOT_IN_TIME)
    try:
        done = subprocess.run(
            [tool, "dump", "--nonblocking", "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PY_SPY_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Look(name=name, pid=pid, problem=f"{why}; py-spy failed: {error}", code=NOT_IN_TIME)
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return Look(name=name, pid=pid, problem=f"{why}; py-spy failed: {said}", code=NOT_IN_TIME)
    return Look(name=name, pid=pid, how="py-spy", stacks=done.stdout)


def py_spy() -> str | None:
    """Where it is: on the path, or beside this interpreter."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))


def _pid(status: SystemStatus, worker: str | None) -> int | None:
    if worker is None:
        return status.supervisor.pid if status.supervisor is not None else None
    return next((one.pid for one in status.workers if one.name == worker and one.process is not None), None)


def _stopped(status: SystemStatus, worker: str | None) -> bool:
    if worker is None:
        return status.supervisor is not None and status.supervisor.health is Health.STOPPED
    return any(one.name == worker and one.health is Health.STOPPED for one in status.workers)
