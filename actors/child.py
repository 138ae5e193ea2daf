"""One supervised worker: what its supervisor remembers of it, and its status block as far as the supervisor writes it.

Cells that belong to the worker are written here only while no process of it lives: between a proven death and a launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.exits import WorkerExit
from actors.hang import Watch
from actors.reasons import Facts, account, tell
from actors.restart import ChildSpec, Death, blames_message
from bus import Block, Control, Field, Pause, Text, WorkerState, pause_cell


class Process(Protocol):
    """A worker process, as `process.WorkerProcess` is one."""

    @property
    def pid(self) -> int: ...
    @property
    def title(self) -> str: ...
    @property
    def pidfd(self) -> int: ...
    def words(self) -> str: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


Suspect = tuple[int, int]  # peer index, sequence number
Launch = Callable[[str, int, Suspect | None], Process]  # name, epoch floor, suspect


@dataclass(slots=True)
class Child:
    """`kill_reason` says why the supervisor has killed this incarnation."""

    spec: ChildSpec
    block: Block
    process: Process | None = None
    ready: bool = False  # this incarnation has been up
    was_up: bool = False  # one of its incarnations has been up
    kill_reason: str = ""
    killed_at: float = math.inf
    late: bool = False  # killed because it did not come up in time
    recounted: bool = False  # what its cells say of its messages was brought up to its journal since it died
    innocent: bool = False  # killed for what the message in progress did not do
    watch: Watch | None = None  # of this incarnation
    facts: Facts | None = None  # of the last death
    restarts: int = 0
    epoch_floor: int = 0  # grows with every launch, and is never below an epoch that was seen
    epoch_before: int = 0
    suspect: Suspect | None = None
    pauses: int = 0  # requests to pause, drain or resume that were passed on

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def drains(self) -> bool:
        """It runs, and has acknowledged that it must not begin anything new."""
        return self.process is not None and self.block.get(Field.CONTROL_SEEN) == Control.DRAIN

    def supervised_as(self, state: WorkerState) -> None:
        """What the supervisor takes it for. Where no process lives that could say otherwise, this is its state."""
        self.block.set(Field.SUPERVISED_STATE, state)
        if self.process is None:
            self.block.set(Field.STATE, state)

    def launched_by(self, launch: Launch, *, let_in: bool = False) -> Process:
        """Start the next incarnation. It is told of the suspect until it, or one after it, has an epoch of its own."""
        self.kill_reason, self.killed_at = "", math.inf
        self.late = self.innocent = self.ready = self.recounted = False
        self.facts = None
        self.epoch_before = self.block.get(Field.EPOCH)
        self.block.set(Field.GATE, let_in)
        self.supervised_as(WorkerState.STARTING)
        self.process = launch(self.name, self.epoch_floor, self.suspect)
        return self.process

    def tell(self, control: Control) -> None:
        self.block.set(Field.CONTROL, control)
        self.block.doorbell.ring()

    def pause(self, pause: Pause) -> None:
        self.pauses += 1
        self.block.set(Field.PAUSE, pause_cell(self.pauses, pause))
        self.block.doorbell.ring()

    def kill(self, reason: str, now: float, innocent: bool = False) -> None:
        if self.process is not None:
            self.innocent = innocent
            self.kill_reason = self.kill_reason or reason
            self.killed_at = min(self.killed_at, now)
            self.process.kill()

    def waits(self) -> bool:
        """Whether it has recovered and waits to be let in, or went in since nobody was before it."""
        state = self.block.get(Field.STATE)
        inside = state == WorkerState.STARTING and self.block.get(Field.EPOCH) != self.epoch_before
        return not self.ready and (state == WorkerState.WAITING or inside)

    def comes_up(self) -> bool:
        """Whether it is up, and this was not seen before."""
        if self.ready or not WorkerState.RUNNING <= self.block.get(Field.STATE) <= WorkerState.STOPPED:
            return False
        self.ready = self.was_up = True
        self.supervised_as(WorkerState.RUNNING)
        return True

    def death(self, code: int, requested: bool, dump: str, memory: str, memory_bytes: int | None) -> Death:
        """Its process, proven dead, seen together with all that is known of it."""
        self.facts = Facts(
            code=code,
            words=self.block.text(Text.LAST_WORDS) or ("" if code < 0 else dump),
            dump=dump,
            killed=self.kill_reason,
            requested=requested,
            memory=memory,
            memory_bytes=memory_bytes,
        )
        exit_code, signal = (code, None) if code >= 0 else (None, -code)
        return Death(self.name, exit_code, signal, requested, tell(self.facts), self.was_up, self.late)

    def bury(self, death: Death) -> Suspect | None:
        """Take what the incarnation leaves: its epoch, and the message it died of, which is returned."""
        block = self.block
        epoch, peer, seq = block.get(Field.EPOCH), block.get(Field.BUSY_PEER), block.get(Field.BUSY_SEQ)
        blamed = (peer - 1, seq) if peer and blames_message(death) and not self.innocent else None
        if epoch != self.epoch_before:
            self.suspect = None  # the one of the death before was taken over
        self.suspect = blamed or self.suspect
        self.epoch_floor = max(self.epoch_floor + 1, epoch)
        for field in _OF_THE_INCARNATION:
            block.set(field, 0)
        block.set(Field.PID, 0)
        self.supervised_as(WorkerState.DEAD)
        return blamed

    def clear_words(self) -> None:
        self.block.set_text(Text.LAST_WORDS, "")

    def write_death(self, death: Death, now_ns: int) -> None:
        """Keep the death, and as much of the last words as there is room for, until the next death."""
        self.block.set(Field.DEATHS, self.block.get(Field.DEATHS) + 1)
        self.block.set_text(Text.LAST_DEATH, account(death.reason, self.facts) if self.facts else death.reason)
        self.clear_words()
        self.block.set(Field.LAST_DEATH_NS, now_ns)
        self.block.set(Field.LAST_DEATH_CODE, _number(death))


_OF_THE_INCARNATION = (
    Field.BUSY_PEER,
    Field.BUSY_SEQ,
    Field.BUSY_SINCE_NS,
    Field.BUSY_HANDLER,
    Field.CONTROL_SEEN,
    Field.PAUSED,
    Field.AT_RISK,
    Field.RETRY_PEER,
)


def _number(death: Death) -> int:
    """The death as one number, as `exits.describe` takes it."""
    if death.signal is not None:
        return -death.signal
    return WorkerExit.LAUNCH_FAILED if death.code is None else death.code
