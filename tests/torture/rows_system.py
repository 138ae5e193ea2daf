"""Another system in which failpoints act: rows that are written and read in place, and claims in memory.

    the program --Go--> pass --Go--> feed --Row, Bulk--> sums
              \\------------Go-------/

At level `memory`, where rows are written in the ring itself and nothing is remembered but by what waits in rings; and
at `power`, where they are written to the journal first. Only workers are killed: at `memory` a system ends with its
supervisor. Rows are numbered by the program, which is outside, and `sums` writes down outside what it is given.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from actors import ExitStatus, FixedMessage, Handler, Message, Rows, State, System, Topology, handle
from actors.fixed import u4, u8
from bus import Field
from tests.torture.failpoint_system import SETTLE, Tortured
from tests.torture.hook import switchboard
from tests.torture.outside import Sent, remembered

SIDES = ("direct", "passed")
ROWS = 5  # for a Go
BULK_EVERY = 3
LARGE = 3000  # bytes: more than goes through a ring
PAUSE = 0.003
KEPT: list[Any] = []  # where a rollback does not reach
LEDGER = "rows-taken"


class Go(Message):
    side: int
    n: int


class Row(FixedMessage):
    number: u8
    side: u4
    check: u8


class Bulk(Message):
    side: int
    n: int
    data: memoryview


class Look(Message): ...


class Taken(Message):
    last: dict[str, int]


class Record(State):
    last: dict[str, int] = {}


class Pass(Handler):
    @handle
    def on_go(self, go: Go) -> None:
        self.send(go)


class Feed(Handler):
    @handle
    def on_go(self, go: Go) -> None:
        if go.n % 4 == 1:
            self._leave_a_block()
        with self.reserve(Row, ROWS) as rows:
            first = (go.n - 1) * ROWS + 1
            rows["number"] = range(first, first + ROWS)
            rows["side"] = go.side
            rows["check"] = rows["number"] * 2654435761 + go.side
            if go.n % 7 == 3:
                self._bulk(go)  # goes first, so the rows are moved out of the ring again
        if go.n % 7 != 3:
            self._bulk(go)

    def _bulk(self, go: Go) -> None:
        if go.n % BULK_EVERY == 0:
            self.send(Bulk(go.side, go.n // BULK_EVERY, memoryview(bytes([go.n % 251]) * (LARGE + go.n % 1000))))

    def _leave_a_block(self) -> None:
        try:
            with self.reserve(Row, 2 * ROWS) as rows:
                rows["number"] = 0
                raise ValueError("never mind")
        except ValueError:
            pass


class Sums(Handler):
    state: Record

    def __init__(self, ledger: str) -> None:
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.kept: list[Any] = []

    def __del__(self) -> None:
        os.close(self._ledger)

    @handle(batch=True)
    def on_rows(self, rows: Rows[Row]) -> None:
        board = switchboard()
        numbers, sides = rows["number"], rows["side"]
        first, last, side = int(numbers[0]), int(numbers[-1]), int(sides[0])
        whole = last - first + 1 == len(rows) and (numbers[1:] == numbers[:-1] + 1).all() and (sides == side).all()
        if not whole or (rows["check"] != numbers * 2654435761 + sides).any():
            self._note("torn", first, last)
        self._note(f"rows {SIDES[side]}", first, last)
        if board.flag("keep"):
            board.set("keep", 0)
            self.kept.append(rows[:1])
        if board.flag("hold"):
            board.set("hold", 0)
            KEPT.append(numbers)

    @handle
    def on_bulk(self, bulk: Bulk) -> None:
        data = bulk.data
        n = bulk.n * BULK_EVERY
        if data != bytes([n % 251]) * (LARGE + n % 1000):
            self._note("torn", bulk.n, bulk.n)
        self._note(f"bulk {SIDES[bulk.side]}", bulk.n, bulk.n)
        self.kept = [data] if bulk.n % 2 else []  # a claim that is looked at is not used again

    def _note(self, stream: str, first: int, last: int) -> None:
        os.write(self._ledger, f"{stream} {first} {last}\n".encode())
        self.state.last[stream] = last

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Taken(self.state.last))


NAMES = ("pass", "feed", "sums")


def topology(directory: Path, level: str) -> Topology:
    app = Topology(
        "rows",
        durability=level,
        directory=directory / "run",
        ring_bytes=1 << 13,
        max_message_bytes=1 << 11,
        max_attempts=10**6,
        max_restarts=10**9,
        backoff_first=0.001,
        backoff_max=0.01,
        drain_timeout=60.0,
        preload=["numpy", __name__],
    )
    app.worker("w-pass", **{"pass": Pass})
    app.worker("w-feed", feed=Feed)
    app.worker("w-sums", sums=Sums.spec(str(directory / LEDGER)))
    for name in NAMES:
        app.supervise(f"w-{name}", hung_after=1.0)
    app.route("pass", Go, to="feed")
    app.route("feed", Row, to="sums")
    app.route("feed", Bulk, to="sums")
    app.external("pass", Go)
    app.external("feed", Go)
    app.external("sums", Look)
    return app


class Program:
    """Sends, until it is stopped."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._stop = threading.Event()
        self._sent = [Sent(folder, side) for side in SIDES]
        self._thread = threading.Thread(target=self._run, name="program")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            for side, (sent, to) in enumerate(zip(self._sent, ("feed", "pass"), strict=True)):
                sent.send(lambda n: self._system.send(to, Go(side, n), timeout=SETTLE))  # noqa: B023 - called at once

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for sent in self._sent:
            sent.close()


def settle(level: str, system: System, folder: Path) -> tuple[list[str], int]:
    """Waits until all has come, and is committed where that is durable, or the time is over: the ledger has what was
    tried, and who is killed before the commit, as hung, say, tries it again."""
    expected: dict[str, int] = {}
    for side in SIDES:
        last, _ = remembered(folder, side)
        expected |= {f"rows {side}": last * ROWS, f"bulk {side}": last // BULK_EVERY}
    deadline = time.monotonic() + SETTLE
    while True:
        found = history((folder / LEDGER).read_text().splitlines())
        come = {name: one.highest for name, one in found.items()} == expected
        taken = expected
        if come and level != "memory":
            taken = system.ask("sums", Look(), reply=Taken, timeout=SETTLE).last
        if (come and taken == expected) or time.monotonic() > deadline:
            break
        threading.Event().wait(0.02)
    blocks = [system.block(f"w-{name}") for name in NAMES]
    excuses = sum(block.get(Field.DEATHS) + block.get(Field.ROLLBACKS) for block in blocks)
    wrong = judge(found, expected, excuses)
    if taken != expected:
        wrong.append(f"sums has {taken}, not {expected}")
    if letters := system.status().dead_letters:
        wrong.append(f"{letters} dead letters")
    if not wrong and (status := system.stop()) is not ExitStatus.OK:
        wrong.append(f"the system ended with {status!r}")
    return wrong, sum(found[f"rows {side}"].highest for side in SIDES)


class Stream(NamedTuple):
    highest: int = 0
    before: int = 0  # the last one that came
    rewinds: int = 0  # how often it went back
    gaps: tuple[str, ...] = ()


def history(ledger: Iterable[str]) -> Mapping[str, Stream]:
    found: dict[str, Stream] = {}
    for line in ledger:
        name, first, last = line.rsplit(" ", 2)
        one = found.get(name, Stream())
        gaps = one.gaps
        if int(first) > one.highest + 1:
            gaps = (*gaps, f"{name} went from {one.highest} to {first}")
        rewinds = one.rewinds + (int(first) <= one.before)
        found[name] = Stream(max(one.highest, int(last)), int(last), rewinds, gaps)
    return found


def judge(found: Mapping[str, Stream], expected: Mapping[str, int], excuses: int) -> list[str]:
    """Nothing is lost or comes before its turn, and all goes back only where a death or a rollback was. `excuses`: how
    many of those there were."""
    wrong = [text for one in found.values() for text in one.gaps[:3]]
    highest = {name: one.highest for name, one in found.items()}
    if highest != dict(expected):
        wrong.append(f"the last ones are {highest}, not {dict(expected)}")
    wrong += [
        f"{name} went back {one.rewinds} times, with {excuses} deaths and rollbacks"
        for name, one in found.items()
        if one.rewinds > excuses
    ]
    return wrong


def tortured(level: str) -> Tortured:
    return Tortured(
        NAMES,
        lambda folder: topology(folder, level),
        Program,
        lambda system, folder, sessions: settle(level, system, folder),
        poisoned=False,
    )
