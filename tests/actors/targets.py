"""What worker processes run in the tests of the supervising side. Imports little: it is loaded after the fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def returns(code: int | None) -> int | None:
    return code


def exits(code: int) -> None:
    sys.exit(code)


def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def holds() -> None:
    while True:
        signal.pause()


def spins() -> None:
    while True:
        pass


def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def tells_about_itself(path: Path) -> None:
    main = sys.modules["__main__"]
    facts = {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "parent": os.getppid(),
        "sigint ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "sigterm default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "main": getattr(main, "__file__", None),
        "cmdline": Path("/proc/self/cmdline").read_text(),
        "comm": Path("/proc/self/comm").read_text().strip(),
    }
    write(path, json.dumps(facts))


def starts_a_grandchild(path: Path, then: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    write(path, str(child.pid))
    if then == "hold":
        holds()


def write(path: Path, text: str) -> None:
    """Whole or not at all: the test waits for the file to be there."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


def works(segment: str, name: str, epoch: int, behaviour: str) -> int:
    """A worker without handlers: keeps the supervisor's side of the protocol, or breaks it as `behaviour` says."""
    from bus import Board, Control, Field, Segment, Text, WorkerState

    board = Board(Segment.attach(segment).buf)
    block = board.block(name)
    block.set(Field.PID, os.getpid())
    block.set(Field.EPOCH, epoch + 1)
    if behaviour == "cannot start":
        block.set_text(Text.LAST_WORDS, "ValueError: no such file")
        return 64
    block.set(Field.STATE, WorkerState.RUNNING)
    if behaviour == "deaf":
        spins()
    if behaviour == "asks for stop":
        block.set(Field.STOP_REQUESTED, 1)
    while (control := block.get(Field.CONTROL)) != Control.STOP:
        block.set(Field.CONTROL_SEEN, control)
        block.doorbell.arm()
        if block.get(Field.CONTROL) == control:
            block.doorbell.wait(1.0)
        block.doorbell.disarm()
    block.set(Field.STATE, WorkerState.STOPPED)
    return 66 if behaviour == "fails at the end" else 0


def writes_to_what_it_was_given() -> None:
    from actors.process import inherited

    for number, descriptor in enumerate(inherited()):
        os.write(descriptor, str(number).encode())
