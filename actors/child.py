"""One supervised worker: what its supervisor remembers of it, and its status block as far as the supervisor writes it.

Cells that belong to the worker are written here only while no process of it lives: between a proven death and a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.exits import WorkerExit
from actors.hang import Hung, Limits, Watch, look_at
from actors.reasons import Facts, account, tell
from actors.restart import ChildSpec, Death, blames_message
from bus import Block, Control, Field, Text, WorkerState


class Process(Protocol):
    """A worker process, as `process.WorkerProcess` is one."""

    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    @property
    def title(self) -> str: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def words(self) -> str: ...
    def close(self) -> None: ...


Suspect = tuple[int, int]  # peer index, sequence number
Launch = Callable[[str, int, Suspect | None], Process]  # name, epoch floor, suspect


@dataclass(slots=True)
class Child:
    """`due` is the time to launch it. Without that and without a process it stays away."""

    spec: ChildSpec
    block: Block
    process: Process | None = None
    due: float | None = 0.0
    ready: bool = False  # this incarnation has been up
    was_up: bool = False  # one of its incarnations has been up
    killed: bool = False  # by the supervisor
    hung: Hung | None = None  # and because of this
    watch: Watch | None = None  # of this incarnation
    facts: Facts | None = None  # of its death
    restarts: int = 0
    epoch_floor: int = 0  # grows with every launch, and is never below an epoch that was seen
    epoch_before: int = 0
    suspect: Suspect | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def over(self) -> bool:
        return self.process is None and self.due is None

    @property
    def drains(self) -> bool:
        """It runs, and has acknowledged that it must not begin anything new."""
        return self.process is not None and self.block.get(Field.CONTROL_SEEN) == Control.DRAIN

    def supervised_as(self, state: WorkerState) -> None:
        """What the supervisor takes it for. Where no process lives that could say otherwise, this is its state."""
        self.block.set(Field.SUPERVISED_STATE, state)
        if self.process is None:
            self.block.set(Field.STATE, state)

    def launched_by(self, launch: Launch) -> Process:
        """Start the next incarnation. It is told of the suspect until it, or one after it, has an epoch of its own."""
        self.due = self.hung = self.facts = None
        self.killed = self.ready = False
        self.epoch_before = self.block.get(Field.EPOCH)
        self.supervised_as(WorkerState.STARTING)
        self.watch = None
        self.process = launch(self.name, self.epoch_floor, self.suspect)
        return self.process

    def comes_up(self) -> bool:
        """Whether it is up, and this was not seen before."""
        if self.ready or not WorkerState.RUNNING <= self.block.get(Field.STATE) <= WorkerState.STOPPED:
            return False
        self.ready = self.was_up = True
        self.supervised_as(WorkerState.RUNNING)
        return True

    def hangs(self, now: float, limits: Limits, letter: Callable[[], str]) -> Hung | None:
        """Whether it has to be killed because it hangs; told once."""
        if self.hung is not None:
            return None
        self.watch = self.watch or Watch(limits)
        self.hung = self.watch.look(now, look_at(self.block), letter)
        return self.hung

    def death(self, code: int, requested: bool, memory: str = "", memory_bytes: int | None = None) -> Death:
        """Its process, proven dead, seen together with the last words it left."""
        left = self.process.words() if self.process is not None else ""
        words = self.block.text(Text.LAST_WORDS).strip() or (left if code > 0 else "")
        killed = f"hung: {self.hung.reason}" if self.hung is not None else ""
        self.facts = Facts(code, words, left, killed, requested, memory, memory_bytes)
        exit_code, signal = (code, None) if code >= 0 else (None, -code)
        return Death(self.name, exit_code, signal, requested or self.killed, tell(self.facts), self.was_up)

    def bury(self, death: Death) -> Suspect | None:
        """Take what the incarnation leaves: its epoch, and the message it died of, which is returned."""
        block = self.block
        epoch, peer, seq = block.get(Field.EPOCH), block.get(Field.BUSY_PEER), block.get(Field.BUSY_SEQ)
        known = self.hung is not None and not self.hung.blames  # what it died of, and that is not the message
        blamed = (peer - 1, seq) if peer and blames_message(death) and not known else None
        if epoch != self.epoch_before:
            self.suspect = None  # the one of the death before was taken over
        self.suspect = blamed or self.suspect
        self.epoch_floor = max(self.epoch_floor + 1, epoch)
        for field in (Field.BUSY_PEER, Field.BUSY_SEQ, Field.BUSY_SINCE_NS, Field.BUSY_HANDLER, Field.CONTROL_SEEN):
            block.set(field, 0)
        block.set(Field.PID, 0)
        self.supervised_as(WorkerState.DEAD)
        return blamed

    def write_death(self, death: Death, now_ns: int) -> None:
        """Keep the death, and as much of the last words as there is room for, until the next death."""
        number = _number(death)
        self.block.set_text(Text.LAST_DEATH, account(death.reason, self.facts or Facts(None)))
        self.block.set_text(Text.LAST_WORDS, "")
        self.block.set(Field.LAST_DEATH_NS, now_ns)
        self.block.set(Field.LAST_DEATH_CODE, number)


def _number(death: Death) -> int:
    """The death as one number, as `exits.describe` takes it."""
    if death.signal is not None:
        return -death.signal
    return WorkerExit.LAUNCH_FAILED if death.code is None else death.code
