"""Handlers that fail as they are told, and leave a trace of every try outside of the system."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from actors import Handler, Message, State, System, handle
from bus import Field
from persist import NamedDeadLetter, read

from .waiting import until


class Job(Message):
    """`how`: it raises, or dies, until the file `gate` is there; "" is done at once."""

    n: int
    how: str = ""
    gate: str = ""


class Get(Message): ...


class Seen(Message):
    items: tuple[int, ...]


class Done(State):
    items: list[int] = []


class Try(NamedTuple):
    handler: str
    n: int
    message_id: str
    at: float  # monotonic seconds


class Worker(Handler):
    """Each subclass has a policy of its own."""

    state: Done

    def __init__(self, log: str) -> None:
        self.log = log

    def note(self, n: int) -> None:
        with open(self.log, "a") as file:
            file.write(f"{self.name} {n} {self.message_id or '-'} {time.monotonic()}\n")

    @handle
    def on_job(self, job: Job) -> None:
        self.note(job.n)
        self.state.items.append(-job.n)
        if job.how and not (job.gate and os.path.exists(job.gate)):
            if job.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"cannot do {job.n}")
        self.state.items[-1] = job.n

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(tuple(self.state.items)))


class Log:
    """What was tried, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def tries(self, n: int | None = None) -> list[Try]:
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")  # the last one may be being written
        lines = [line.split() for line in whole.splitlines()]
        found = [Try(name, int(number), identity, float(at)) for name, number, identity, at in lines]
        return [one for one in found if n in {None, one.n}]

    def wait_for(self, n: int, times: int = 1) -> None:
        until(lambda: len(self.tries(n)) >= times, f"try {times} of {n}")


def letters_of(system: System, worker: str = "work") -> list[NamedDeadLetter]:
    return read(system.directory / "journals" / worker).dead


def done_by(system: System, handler: str = "worker") -> tuple[int, ...]:
    return system.ask(handler, Get(), reply=Seen).items


def kill(system: System, worker: str = "work") -> None:
    """SIGKILL, and wait until the next incarnation handles messages."""
    block = system.block(worker)
    until(lambda: block.get(Field.PID) != 0, "a process")
    epoch, session = block.get(Field.EPOCH), block.get(Field.PID)
    os.kill(session, signal.SIGKILL)
    until(lambda: block.get(Field.EPOCH) > epoch, "the next incarnation", 30)
