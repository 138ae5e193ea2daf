"""The system in which failpoints act: the tortured topology, and all that brings it to every point.

    source --Item--> left  --Part--> join --Token--> ping <--Token--> pong
           \\-Item--> right --Part--/   |               \\--Done--> sink <--Outside, Poison-- the program
                                     Count --> tally, in the same worker, <--Bulk-- left

At level `power`, with short segments, small rings and outboxes, so that journals rotate, rings fill and backlogs spill
all the time. The program around it sends, asks, and now and then sends what no handler can stand.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from actors import AskTimeout, Message, System, SystemClosed, Topology, handle, supervisor
from actors.plan import Plan
from actors.tickets import ticket_in
from bus import RING_IMPLEMENTATION
from persist import journal, read
from tests.torture import topology as plain
from tests.torture.hook import FailpointError, switchboard
from tests.torture.oracle import BULK_EVERY, judge, judge_ledgers, outside_problems
from tests.torture.outside import Sent, remembered
from tests.torture.topology import Done, Finish, Item, Look, Outside, Part, Recorder, Seen, Token

NAMES = ("source", "left", "right", "join", "ping", "pong", "sink")  # each in a worker w-NAME
ALL = (*NAMES, "tally")
PAUSE = 0.002
ASK_EVERY = 3
SETTLE = 30.0
ATTEMPTS = 12
BROKEN = 3  # exit status: the gateway refuses to go on; what was accepted is not to be lost
FRAMES = 48  # of a segment
LARGE = 3000  # bytes: more than goes through a ring


class Poison(Message):
    """No handler can stand it: it becomes a dead letter, and keeps its claim."""

    n: int
    data: bytes = bytes(LARGE)


class Count(Message):
    stream: str
    n: int


class Bulk(Message):
    """Too large for a ring."""

    n: int
    data: bytes


class Source(plain.Source):
    def __init__(self, ledgers: str) -> None:
        super().__init__(ledgers)
        short_segments()

    def on_loop(self) -> float | None:
        if self.state.finished:
            return None
        piling = switchboard().flag("pile")
        for _ in range(60 if piling else 3):
            self.state.count += 1
            self.send(Item(self.state.count))
        return PAUSE if piling else 4 * PAUSE


class Left(plain.Left):
    @handle
    def on_item(self, item: Item) -> None:
        raise_if_asked("raise")
        if switchboard().flag("pile") and not switchboard().flag("rest"):
            time.sleep(0.002)
        super().on_item(item)
        if item.n % BULK_EVERY == 0:
            self.send(Bulk(item.n, bytes(LARGE + item.n % LARGE)))


class Join(plain.Join):
    def on_start(self) -> None:
        self.state.outside += 1
        self.send(Count("starts", self.state.outside))  # takes effect once a session, however often it is called

    @handle(batch=True)
    def on_parts(self, parts: list[Part]) -> None:
        raise_if_asked("carry")
        super().on_parts(parts)

    def join(self, part: Part) -> None:
        super().join(part)
        if part.side == "right":
            self.send(Count("rights", part.n))


class Tally(Recorder):
    @handle(batch=True)
    def on_counts(self, counts: list[Count]) -> None:
        for count in counts:
            self.take(count.stream, count.n)

    @handle
    def on_bulk(self, bulk: Bulk) -> None:
        assert len(bulk.data) == LARGE + bulk.n % LARGE
        self.take("bulk", bulk.n, step=BULK_EVERY)


class Sink(plain.Sink, retry_first=0.001, retry_max=0.004):
    """What fails waits, so its attempts are counted durably one by one."""

    @handle
    def on_poison(self, poison: Poison) -> None:
        raise ValueError("poison")


def raise_if_asked(flag: str) -> None:
    board = switchboard()
    if board.flag(flag):
        board.set(flag, 0)
        raise ValueError("asked to")


def short_segments() -> None:
    vars(journal)["SEGMENT_FRAMES"] = FRAMES


def early_spares() -> None:
    """There is one although hardly anything is calm for long."""
    vars(supervisor)["SPARE_AFTER"] = 0.001


def topology(directory: Path) -> Topology:
    ledgers = directory / "ledgers"
    ledgers.mkdir(parents=True, exist_ok=True)
    app = Topology(
        "torture",
        durability="power",
        directory=directory / "run",
        ring_bytes=1 << 13,
        max_message_bytes=1 << 11,
        outbox_limit_bytes=1 << 13,
        claims_limit_bytes=1 << 13,
        max_attempts=ATTEMPTS,
        max_restarts=10**9,
        backoff_first=0.001,
        backoff_max=0.01,
        drain_timeout=60.0,
        preload=[__name__],
    )
    where = str(ledgers)
    app.worker("w-source", source=Source.spec(where))
    app.worker("w-left", left=Left.spec(where))
    app.worker("w-right", right=plain.Right.spec(where))
    app.worker("w-join", join=Join.spec(where), tally=Tally.spec(where))
    app.worker("w-ping", ping=plain.Ping.spec(where))
    app.worker("w-pong", pong=plain.Pong.spec(where))
    app.worker("w-sink", sink=Sink.spec(where))
    for name in NAMES:
        app.supervise(f"w-{name}", hung_after=1.0)
    for name in ALL:
        app.external(name)
    app.route("source", Item, to=["left", "right"])
    app.route("left", Part, to="join")
    app.route("right", Part, to="join")
    app.route("join", Token, to="ping")
    app.route("join", Count, to="tally")
    app.route("left", Bulk, to="tally")
    app.route("ping", Token, to="pong")
    app.route("pong", Token, to="ping")
    app.route("ping", Done, to="sink")
    app.route("pong", Done, to="sink")
    return app


class Program:
    """What the program around the system does, until it is stopped or dies: sends, asks, poisons."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._folder = folder
        self._stop = threading.Event()
        self._outside, self._poison = Sent(folder, "outside"), Sent(folder, "poison")
        self._thread = threading.Thread(target=self._run, name="program")
        self._thread.start()

    def _run(self) -> None:
        board, turn = switchboard(), 0
        while not self._stop.wait(3 * PAUSE):
            turn += 1
            try:
                if board.flag("poison"):
                    board.set("poison", 0)
                    self._poison.send(lambda n: self._system.send("sink", Poison(n), timeout=SETTLE))
                self._outside.send(lambda n: self._system.send("sink", Outside(n), timeout=SETTLE))
                if turn % ASK_EVERY == 0:
                    self._look(ALL[turn // ASK_EVERY % len(ALL)])
            except FailpointError:
                continue
            except Exception as error:  # closed, or of two minds after an error in the middle of something
                self._end(f"{type(error).__name__}: {error}")

    def _look(self, name: str) -> None:
        try:
            seen = self._system.ask(name, Look(), timeout=SETTLE, reply=Seen)
        except AskTimeout as error:
            (self._folder / "wrong").write_text(f"{name} does not answer: {error}")
            raise
        if seen.wrong:
            (self._folder / "wrong").write_text(f"{name}: {seen.wrong}")

    def _end(self, why: str) -> None:
        if not self._stop.is_set():
            with open(self._folder / "ends", "a") as file:
                file.write(why + "\n")
            os._exit(BROKEN)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Tortured(NamedTuple):
    """A system, and what is around it. `names`: each is in a worker w-NAME. `settle`: of how many sessions; what is
    wrong, and how many items there were. `poisoned`: some of what the program sends becomes dead letters."""

    names: tuple[str, ...]
    topology: Callable[[Path], Topology]
    program: Callable[[System, Path], Stoppable]
    settle: Callable[[System, Path, int], tuple[list[str], int]]
    poisoned: bool


class Stoppable(Protocol):
    def stop(self) -> None: ...


def server(folder: Path, tortured: Tortured) -> Callable[[], None]:
    """What a process with the system runs. The plan is made once, before."""
    plan = tortured.topology(folder).compile()
    return lambda: serve(plan, folder, tortured)


def serve(plan: Plan, folder: Path, tortured: Tortured) -> None:
    """The system, until it is killed or told to rest (a clean end, after which another session begins) or to finish,
    by the number of sessions that there were. Does not return."""
    board = switchboard()
    assert ("c" if board.ring else "python") == RING_IMPLEMENTATION
    board.supervise()
    short_segments()
    early_spares()
    system = System(plan, folder / "run").start()
    program = tortured.program(system, folder)
    board.set("up")
    told = threading.Event()

    def watch() -> None:
        system.join()
        if not told.is_set():
            os._exit(BROKEN)

    threading.Thread(target=watch, daemon=True).start()
    while not (board.flag("rest") or board.flag("finish")):
        time.sleep(PAUSE)
    told.set()
    program.stop()
    wrong: list[str] = []
    items = 0
    if sessions := board.flag("finish"):
        wrong, items = tortured.settle(system, folder, sessions)
    system.stop(drain=not wrong)
    if sessions:
        wrong += claims_left(folder) if not wrong and tortured.poisoned else []
        (folder / "verdict").write_text(json.dumps({"wrong": wrong, "items": items}))
    os._exit(0)


def claims_left(folder: Path) -> list[str]:
    """Nothing but what dead letters keep."""
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.claim")}
    wanted = set()
    for path in (folder / "run" / "journals").iterdir():
        tickets = [ticket_in(letter.body) for letter in read(path).dead]
        wanted |= {f"run/journals/{one.owner}/{one.number:016x}.claim" for one in tickets if one is not None}
    return [] if there == wanted else [f"claims left: {sorted(there - wanted)}, lost: {sorted(wanted - there)}"]


def settle(system: System, folder: Path, sessions: int) -> tuple[list[str], int]:
    """Ends the load and waits until everything is right, or surely wrong, or the time is over."""
    deadline = time.monotonic() + SETTLE
    items, wrong = 0, ["nothing was seen"]
    try:
        system.send("source", Finish(), timeout=SETTLE)
        while wrong and time.monotonic() < deadline:
            seen = {name: system.ask(name, Look(), timeout=SETTLE, reply=Seen) for name in ALL}
            items = seen["source"].count
            wrong = judge(seen, sessions) + outside_problems(seen["sink"], *remembered(folder))
            if any(one.wrong for one in seen.values()):
                break
            threading.Event().wait(0.05)
        wrong += judge_ledgers(folder / "ledgers")
    except (AskTimeout, SystemClosed) as error:
        wrong.append(f"lost: {type(error).__name__}: {error}")
    return wrong, items


WHOLE = Tortured(NAMES, topology, Program, settle, poisoned=True)
