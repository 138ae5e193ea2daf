"""Lives of a journal on a simulated disk, and the trial that ends them at every operation.

The oracle is what the life has noted down: transactions are numbered, so what recovery finds must be exactly the first
n of them, and n must lie between what was promised and what was attempted.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from persist import DamagedJournal, Journal, NotAJournal, Recovered, Send, Transaction
from persist.errors import PersistError
from persist.retention import NOTHING, Retain
from tests.persist.building import after, meaning, series, snapshots
from tests.persist.power_loss import Disk, Operation, Sync, Write, deaths, losses

SIZES = (0, 30, 700, 3, 5000, 120)  # within a sector, over some, over some pages


class PowerIsOff(BaseException):
    """Nobody handles it."""


class Violation(AssertionError):
    """`place` says where to look, and how to see it again."""


def body(number: int) -> bytes:
    return b"body %d " % number + b"%d" % (number % 10) * SIZES[number % len(SIZES)]


def numbered(number: int) -> Transaction:
    return Transaction(
        consumed=[(0, number)],
        sends=[Send(0, 1, 0, [(0, number)], body(number))],
        states=[(0, b"%d" % number)],
        keys=[(1, b"key %d" % (number % 3), b"%d" % number)],
    )


def opened(disk: Disk, level: str, retain: Retain = NOTHING, epoch: int = 0) -> tuple[Journal, Recovered]:
    return Journal.open(
        "/journal",
        epoch=epoch,
        level=level,
        make_snapshot=snapshots(level=level),
        files=disk.directory,
        reserve=512,
        retain=retain,
        clock=lambda: 1,
    )


@dataclass
class Promises:
    """Transactions 1 to `attempted` were appended, or begun to be. Those up to `safe` must be found after a power
    loss, those up to `committed` after the death of all processes. Sends up to `acked` need not be found any more."""

    attempted: int = 0
    committed: int = 0
    safe: int = 0
    acked: int = 0


@dataclass
class Life:
    """A journal's, over several incarnations. `script`: what happens, a word for each step."""

    level: str
    script: str
    disk: Disk = field(default_factory=Disk)
    retain: Retain = NOTHING
    promises: Promises = field(default_factory=Promises)
    journal: Journal | None = None
    reached: Callable[[Life, Operation], None] | None = None
    step: str = ""

    def live(self, random: Random) -> None:
        for number, step in enumerate(self.script.split()):
            self.step = f"step {number}, {step}"
            self.disk.watch = self._watch
            getattr(self, f"_{step}")(random)
        self._watch(Sync())

    def _watch(self, operation: Operation) -> None:
        if self.reached is not None:
            self.reached(self, operation)

    @property
    def open_journal(self) -> Journal:
        assert self.journal is not None
        return self.journal

    def _open(self, random: Random) -> None:
        self.journal, recovered = opened(self.disk, self.level, self.retain)
        number = recovered.assigned.get("left", 0)
        told = self.promises
        told.attempted = told.committed = number
        if self.level == "power":
            told.safe = number

    def _append(self, random: Random) -> None:
        told = self.promises
        told.attempted = told.committed + 1
        self.open_journal.append(numbered(told.attempted))
        told.committed += 1

    def _sync(self, random: Random) -> None:
        self.open_journal.sync()
        if self.level == "power":
            self.promises.safe = self.promises.committed

    def _flush(self, random: Random) -> None:
        """As another thread does it."""
        self.open_journal.flush()
        if self.level == "power":
            self.promises.safe = self.promises.committed

    def _rotate(self, random: Random) -> None:
        self.open_journal.rotate(after(self.promises.committed, [(0, self.promises.acked)]))
        if self.level == "power":
            self.promises.safe = self.promises.committed

    def _acknowledge(self, random: Random) -> None:
        """The receiver has all that is safe to be acknowledged, but for the last one."""
        last = self.promises.safe if self.level == "power" else self.promises.committed
        self.promises.acked = max(self.promises.acked, last - 1)
        self.open_journal.trim({0: self.promises.acked})

    def _settle(self, random: Random) -> None:
        """The receiver has everything."""
        self.promises.acked = self.promises.safe if self.level == "power" else self.promises.committed
        self.open_journal.trim({0: self.promises.acked})

    def _close(self, random: Random) -> None:
        self.open_journal.close()

    def _killed(self, random: Random) -> None:
        """The process dies in the middle of an append."""

        def die(operation: Operation) -> None:
            if not isinstance(operation, Write):
                return
            left.append(self.disk.after_death(operation, [(0, random.randrange(1, len(operation.content)))]))
            raise PowerIsOff

        left: list[Disk] = []
        self.disk.watch = die
        # A process that dies forgets nothing that waits to be written: only power loss does.
        with pytest.raises(PowerIsOff):
            self.open_journal.append(numbered(self.promises.committed + 1))
        self.promises.attempted = self.promises.committed + 1
        self._gone(self._not_durable(left[0]))

    def _not_durable(self, left: Disk) -> Disk:
        """`left`, all of it still to be synced."""
        for name, node in left.names.items():
            now = self.disk.names.get(name)
            if now is not None:
                data, mask = bytes(node.data), bytes(node.mask)
                node.disk, node.known, node.pending = now.disk, now.known, list(now.pending)
                for one in node.pending:
                    one.node = node
                node.pending.append(Write(node, 0, data[: len(data.rstrip(b"\0"))]))
                node.data, node.mask = bytearray(data), bytearray(mask)
        left.durable = {name: left.names.get(name, node) for name, node in self.disk.durable.items()}
        moved = {id(node): left.names[name] for name, node in self.disk.names.items() if name in left.names}
        left.pending = self.disk.pending
        for operation in left.pending:
            operation.node = moved.get(id(operation.node), operation.node)
        return left

    def _outage(self, random: Random) -> None:
        """The power fails while something is appended and not synced."""
        self._append(random)
        states = [state for _, state in losses(self.disk, Sync(), random, 12)]
        self.promises.committed = self.promises.safe
        self._gone(random.choice(states))

    def _gone(self, left: Disk) -> None:
        self.disk.dead = True
        self.open_journal.close()
        self.disk, self.journal = left, None


@dataclass
class Trial:
    """Judges what is left wherever power fails or processes die. `most`: states for each operation."""

    seed: int = 0
    most: int = 24
    nested: float = 0.04  # how many of the recoveries fail half-way themselves
    stale: Callable[[Random, int], bytes] | None = None
    states: int = 0  # different ones that were judged
    operations: int = 0
    refused: int = 0
    cut: int = 0
    seen: set[Any] = field(default_factory=set)

    def of(self, life: Life) -> Trial:
        random = Random(self.seed)
        life.reached = lambda life, operation: self._at(life, operation, random)
        life.live(random)
        return self

    def _at(self, life: Life, operation: Operation, random: Random, depth: int = 0) -> None:
        told = life.promises
        self.operations += 1
        point = f"operation {self.operations} ({type(operation).__name__})"
        for what, state in deaths(life.disk, operation, random, max(2, self.most // 4)):
            self._judge(life, state, told.committed, told, False, random, f"death in {point}: {what}", depth)
        lost = 0 if life.level == "process" else told.safe
        for stale in (None, self.stale) if self.stale else (None,):
            tolerant = life.level == "process" or stale is not None
            for what, state in losses(life.disk, operation, random, self.most, stale):
                self._judge(life, state, lost, told, tolerant, random, f"power loss in {point}: {what}", depth)

    def _judge(
        self,
        life: Life,
        state: Disk,
        least: int,
        told: Promises,
        tolerant: bool,
        random: Random,
        where: str,
        depth: int,
    ) -> None:
        """`tolerant`: recovery may refuse."""
        key = (tuple(sorted(state.contents().items())), least, told.attempted, told.acked, tolerant)
        if (hashed := hash(key)) in self.seen:
            return
        self.seen.add(hashed)
        self.states += 1
        try:
            self._recover(life, state, least, told, tolerant, random, depth)
        except Violation:
            raise
        except (AssertionError, PersistError, OSError) as error:
            text = "".join(traceback.format_exception_only(error)).strip()
            raise Violation(
                f"seed {self.seed}, {life.level}, {life.step}, {where}: {text}; the life: {life.script}"
            ) from error

    def _recover(
        self, life: Life, state: Disk, least: int, told: Promises, tolerant: bool, random: Random, depth: int
    ) -> None:
        few = Trial(self.seed, 4, 0.0, seen=self.seen)
        if depth == 0 and random.random() < self.nested:
            again = Life(life.level, "", state, life.retain, replace(told, committed=least, safe=least))
            again.step = f"{life.step}, recovery"
            state.watch = lambda operation: few._at(again, operation, random, 1)
        try:
            journal, recovered = opened(state, life.level, life.retain)
        except (DamagedJournal, NotAJournal):
            if not tolerant:
                raise
            self.refused += 1
            return
        finally:
            self.states += few.states
        state.watch = lambda operation: None
        self.cut += recovered.torn is not None
        number = recovered.assigned.get("left", 0)
        assert least <= number <= told.attempted, f"{number} found of {least} to {told.attempted}"
        holds(journal, recovered, number, told.acked)
        journal.append(numbered(number + 1))
        journal.sync()
        if random.random() < 0.5:
            journal.close()
        journal, recovered = opened(state, life.level, life.retain)
        assert recovered.torn is None
        holds(journal, recovered, number + 1, told.acked)
        journal.close()


def holds(journal: Journal, recovered: Recovered, number: int, acked: int) -> None:
    """Exactly the first `number` transactions, and the sends of all that were not acknowledged."""
    assert meaning(recovered) == series(number)
    known = recovered.acked.get("left", 0)
    assert known <= max(acked, 0)
    start = recovered.unacked_from.get("left")
    sends = [] if start is None else [(send.edges, send.body) for _, send in journal.sends(0, known, start)]
    assert sends == [([(0, n)], body(n)) for n in range(known + 1, number + 1)]


POWER = {
    "appending": "open append append sync append sync append append append flush append append append append",
    "rotating": "open append sync append rotate append append sync rotate append rotate rotate append sync append",
    "trimming": "open append rotate append sync rotate append rotate append acknowledge append sync rotate settle",
    "restarting": "open append sync append close open append sync close open rotate append close open settle append",
    "killed": "open append sync killed open append append killed open append flush append rotate killed open append",
    "outages": "open append sync append outage open append sync outage open append rotate append outage open settle",
}
PROCESS = {
    "appending": "open append append sync append append append rotate append append",
    "rotating": "open append rotate append append rotate acknowledge append close open append rotate settle append",
    "killed": "open append append killed open append rotate append killed open append acknowledge append close open",
}
STEPS = (
    ["append"] * 6
    + ["sync", "sync", "flush"]
    + ["rotate", "rotate", "acknowledge", "settle", "close open", "killed open"]
)


def script(level: str, seed: int, steps: int) -> str:
    """A life like those above, by chance."""
    kinds = STEPS + (["outage open"] if level == "power" else [])
    return " ".join(["open", *Random(seed).choices(kinds, k=steps)])
