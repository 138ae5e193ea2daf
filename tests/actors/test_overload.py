"""Backpressure: nothing blocks, nothing is lost, memory is bounded, and cycles make progress."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from actors import ExitStatus, Handler, Message, SendTimeout, State, System, Topology, handle
from bus import Field

MIB = 1 << 20


class Block(Message):
    n: int
    data: bytes


class Get(Message):
    pass


class Seen(Message):
    n: int
    in_order: bool


class Count(State):
    n: int = 0
    in_order: bool = True


class Endless(Handler):
    """A source that never waits by itself."""

    state: Count

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def on_loop(self) -> float | None:
        if self.state.n >= self.limit:
            return math.inf
        self.state.n += 1
        self.send(Block(self.state.n, bytes(1000)))
        return None


class Slow(Handler):
    """Reads slower than anybody writes, until it is told not to."""

    state: Count

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @handle
    def on_block(self, block: Block) -> None:
        self.state.n += 1
        self.state.in_order &= block.n == self.state.n
        if self.seconds:
            time.sleep(self.seconds)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.n, self.state.in_order))


class Relay(Handler):
    @handle
    def on_block(self, block: Block) -> None:
        self.send(block)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        threading.Event().wait(0.01)


def rss(system: System, worker: str) -> int:
    return psutil.Process(system.block(worker).get(Field.PID)).memory_info().rss


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_slow_consumer_bounds_the_memory_of_its_producer(tmp_path: Path, level: str) -> None:
    """Source, relay, and an end a hundred times slower: overload travels back edge by edge to the source."""
    app = Topology("chain", directory=tmp_path / "run", durability=level, ring_bytes=64 << 10,
                   outbox_limit_bytes=MIB, max_message_bytes=16 << 10)  # fmt: skip
    app.worker("source", endless=Endless.spec(10**9))
    app.worker("middle", relay=Relay)
    app.worker("end", slow=Slow.spec(0.001))
    app.route("endless", Block, to="relay")
    app.route("relay", Block, to="slow")
    app.external("slow", Get)
    with app.start() as system:
        before = rss(system, "source")
        source = system.block("source")
        until(
            lambda: (
                source.get(Field.OVER_LIMIT) or (source.get(Field.OUTBOX_BYTES) == 0 and source.get(Field.SENT) > 200)
            )
        )
        until(lambda: system.ask("slow", Get(), reply=Seen).n > 100)
        until(lambda: system.ask("slow", Get(), reply=Seen).n > 300)
        # What is under way is bounded by rings and outboxes, however long it goes on: first what was sent, then what
        # of it has arrived.
        sent = source.get(Field.SENT)
        arrived = system.ask("slow", Get(), reply=Seen).n
        assert sent - arrived < 6 * MIB // 1000, (sent, arrived)
        assert rss(system, "source") - before < 32 * MIB
        assert system.ask("slow", Get(), reply=Seen).in_order
        system.stop(drain=False)


class Token(Message):
    hops: int
    data: bytes


class Player(Handler):
    state: Count

    @handle
    def on_token(self, token: Token) -> None:
        self.state.n += 1
        if token.hops:
            self.send(Token(token.hops - 1, token.data))

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.n, True))


@pytest.mark.parametrize("level", ["memory", "process"])
@pytest.mark.parametrize("players", [1, 2, 3])
def test_a_cycle_of_full_rings_makes_progress(tmp_path: Path, players: int, level: str) -> None:
    """Rings with room for three messages, and a hundred tokens going round: every ring is full towards the next."""
    app = Topology("cycle", directory=tmp_path / "run", durability=level, ring_bytes=4096, max_message_bytes=1024,
                   outbox_limit_bytes=64 << 10)  # fmt: skip
    names = [f"p{number}" for number in range(players)]
    for name in names:
        app.worker(f"w-{name}", **{name: Player})
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        app.route(name, Token, to=following)
    app.external("p0", Token)
    for name in names:
        app.external(name, Get)
    tokens, hops = 100, 50
    with app.start() as system:
        for _ in range(tokens):
            system.send("p0", Token(hops, bytes(900)))
        until(lambda: sum(system.ask(name, Get(), reply=Seen).n for name in names) == tokens * (hops + 1))
    assert system.join() is ExitStatus.OK


class Splitter(Handler):
    """Sends two for each that it gets while there are few, then one, and none once the gate is open."""

    state: Count

    def __init__(self, gate: str) -> None:
        self.gate = Path(gate)

    @handle
    def on_token(self, token: Token) -> None:
        self.state.n += 1
        if not self.gate.exists():
            for _ in range(1 + (self.state.n < 2000)):
                self.send(token)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.n, True))


def alarms(system: System) -> set[tuple[str, str]]:
    return {(alarm.kind, alarm.worker) for alarm in system.status().alarms}


def test_a_cycle_that_multiplies_its_messages_is_told_as_long_as_it_is_full_of_them(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    app = Topology("rabbits", directory=tmp_path / "run", outbox_limit_bytes=16 << 10, ring_bytes=16 << 10,
                   max_message_bytes=4 << 10)  # fmt: skip
    for name, following in (("a", "b"), ("b", "a")):
        app.worker(f"w-{name}", **{name: Splitter.spec(str(gate))})
        app.route(name, Token, to=following)
        app.external(name, Token, Get)
    with app.start() as system:
        system.send("a", Token(0, bytes(1000)))
        until(lambda: {kind for kind, _ in alarms(system)} >= {"multiplying"})
        assert {worker for kind, worker in alarms(system) if kind == "multiplying"} <= {"w-a", "w-b"}
        gate.touch()
        until(lambda: not alarms(system))
    assert system.join() is ExitStatus.OK


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_few_messages_in_a_cycle_are_no_alarm_however_large_they_are(tmp_path: Path, level: str) -> None:
    """One waits for a worker that takes nothing, and is many times the limit; others go round meanwhile."""
    app = Topology("cycle", directory=tmp_path / "run", durability=level, claims_limit_bytes=64 << 10)
    for name, following in (("p0", ["p1", "p2"]), ("p1", ["p0"]), ("p2", ["p0"])):
        app.worker(f"w-{name}", **{name: Player})
        app.route(name, Token, to=following)
        app.external(name, Token, Get)
    with app.start() as system:
        system.pause("w-p1")
        system.send("p0", Token(3, bytes(2 * MIB)))
        until(lambda: system.block("w-p2").get(Field.HANDLED) == 2)
        assert system.block("w-p0").get(Field.OVER_LIMIT) == 1
        assert system.block("w-p0").get(Field.MULTIPLYING) == 0
        system.resume("w-p1")
        until(lambda: sum(system.ask(name, Get(), reply=Seen).n for name in ("p0", "p1", "p2")) == 9)
        assert not alarms(system)


def send_until_full(system: System) -> None:
    for n in range(1, 1000):
        system.send("slow", Block(n, bytes(1000)), timeout=0.2)


def test_an_external_sender_waits_for_room_with_a_deadline(tmp_path: Path) -> None:
    app = Topology(
        "slow", directory=tmp_path / "run", ring_bytes=16 << 10, max_message_bytes=4 << 10, outbox_limit_bytes=32 << 10
    )
    app.worker("end", slow=Slow.spec(3600.0))
    app.external("slow", Block, Get)
    with app.start() as system:
        with pytest.raises(SendTimeout) as full:
            send_until_full(system)
        assert full.value.backlog > 32 << 10
        system.stop(drain=False)


def test_a_backlog_longer_than_memory_waits_in_the_journal(tmp_path: Path) -> None:
    """One handling sends far more than the outbox limit: the rest is read back from disk, in order."""
    app = Topology(
        "burst",
        directory=tmp_path / "run",
        ring_bytes=64 << 10,
        max_message_bytes=16 << 10,
        outbox_limit_bytes=128 << 10,
    )
    app.worker("source", burst=Burst)
    app.worker("end", slow=Slow.spec(0.0))
    app.route("burst", Block, to="slow")
    app.external("burst", Get)
    app.external("slow", Get)
    with app.start() as system:
        system.send("burst", Get())
        until(lambda: system.ask("slow", Get(), reply=Seen).n == 5000)
        assert system.ask("slow", Get(), reply=Seen).in_order
        assert rss(system, "source") < 200 * MIB


class Burst(Handler):
    @handle
    def on_get(self, get: Get) -> None:
        for n in range(1, 5001):
            self.send(Block(n, bytes(1000)))
