"""The Python stacks of all threads of a living worker, also of one that hangs.

The worker is asked by a signal, and answers from within the signal handler (`last_words`): no code of its own has to
come around, and it goes on undisturbed. It cannot answer while it is stopped, or while it waits in the kernel for a
device; then py-spy looks from outside, where it is installed and allowed to.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from actors.evidence import process_state
from actors.last_words import DUMP_SIGNAL, LIMIT, read
from actors.process import WorkerProcess

# Seconds without another line, after which an answer is taken for whole: of a process that sleeps, so that it has said
# what it had to say, and of one that may only be waiting for its turn.
SETTLED, RUNNING_SETTLED = 0.05, 0.3
OUTSIDE = 10.0  # seconds that py-spy may take


def stacks(process: WorkerProcess, timeout: float = 2.0) -> str:
    """As text, for people to read; if there are none to be had, why. May be called by any thread. Takes at most
    `timeout` seconds, and 10 more where py-spy has to help."""
    try:
        with process.borrowed() as (pidfd, words):
            if process_state(process.pid) in {"Z", ""}:
                return f"process {process.pid} is dead"
            why = _refusal(process.pid)
            answer = _ask(process.pid, pidfd, words, timeout) if not why else ""
    except (ValueError, ProcessLookupError):
        return f"process {process.pid} is dead"
    if answer:
        return answer
    why = why or f"process {process.pid} does not answer within {timeout:g} s"
    return _from_outside(process.pid, why)


def _refusal(pid: int) -> str:
    """Why it cannot answer; empty if it can be asked. A process without the handler would die of the signal."""
    match process_state(pid):
        case "T":
            return f"process {pid} is stopped (SIGSTOP) and cannot answer; `kill -CONT {pid}` lets it go on"
        case "t":
            return f"process {pid} is held by a debugger and cannot answer"
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
    if not caught >> (DUMP_SIGNAL - 1) & 1:
        return f"process {pid} does not listen, or not yet"
    return ""


def _ask(pid: int, pidfd: int, words: int, timeout: float) -> str:
    """What it writes from now on, when nothing has been added for a while. Empty if nothing comes."""
    begin = os.fstat(words).st_size
    if begin > LIMIT:
        os.ftruncate(words, begin := 0)  # answers of long ago
    signal.pidfd_send_signal(pidfd, DUMP_SIGNAL)
    now = time.monotonic()
    deadline, size, since = now + timeout, begin, now
    while now < deadline and not (size > begin and now - since > SETTLED and _settled(pid, now - since)):
        time.sleep(0.005)
        now, before = time.monotonic(), size
        size = os.fstat(words).st_size
        if size != before:
            since = now
    return read(words, begin).strip()


def _settled(pid: int, silent: float) -> bool:
    return silent > RUNNING_SETTLED or process_state(pid) != "R"


def _from_outside(pid: int, why: str) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return f"{why}; py-spy, which could look from outside, is not installed"
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=OUTSIDE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{why}; py-spy could not help: {error}"
    if ran.returncode != 0:
        return f"{why}; py-spy could not help: {ran.stderr.strip()}"
    return f"{why}; py-spy says:\n{ran.stdout.strip()}"
