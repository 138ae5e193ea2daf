"""What is tortured: a fan-out, a join and a cycle, with handlers that notice what must not happen.

    source --Item--> left  --Part--> join --Token--> ping <--Token--> pong
           \\-Item--> right --Part--/                  \\--Done--> sink

Every handler is in a worker of its own. Each Part carries a random number, drawn anew whenever its Item is handled:
sender and receiver keep a digest of them, so that a message of a transaction that was never committed shows, too.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from actors import Handler, Message, State, Topology, handle
from tests.torture.sabotage import sabotage

HOPS = 5
TOKEN_EVERY = 7
BURST = 20
MODULUS = (1 << 61) - 1
WORKERS = ("source", "left", "right", "join", "ping", "pong", "sink")


class Item(Message):
    n: int


class Part(Message):
    side: str
    n: int
    nonce: int


class Token(Message):
    n: int
    hops: int


class Done(Message):
    n: int


class Outside(Message):
    """Sent by the program, not by a handler."""

    n: int


class Finish(Message):
    """No more items after those that were sent."""


class Look(Message):
    pass


class Seen(Message):
    """What a handler has in its durable state. `wrong` tells of messages that were not the next one."""

    count: int
    last: dict[str, int]
    digest: dict[str, int]
    wrong: list[str]
    outside: int  # the last one that came from outside
    skipped: list[int]  # those that did not come before it


class Record(State):
    count: int = 0
    last: dict[str, int] = {}
    digest: dict[str, int] = {}
    wrong: list[str] = []
    finished: bool = False
    outside: int = 0
    skipped: list[int] = []


class Recorder(Handler):
    """Base: keeps the record, and a ledger outside of the runtime in which every attempt is a line."""

    state: Record

    def __init__(self, ledgers: str, mutation: str = "") -> None:
        sabotage(mutation, Path(ledgers))
        self._ledger = os.open(Path(ledgers) / type(self).__name__, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __del__(self) -> None:
        os.close(self._ledger)

    def take(self, stream: str, n: int, nonce: int = 0, step: int = 1) -> None:
        os.write(self._ledger, f"\n{stream} {n}\n".encode())  # a line of its own even behind one that was cut short
        state = self.state
        expected = state.last.get(stream, 0) + step
        if n != expected and len(state.wrong) < 20:
            state.wrong.append(f"{stream}: {n} came, {expected} was next")
        state.last[stream] = n
        state.digest[stream] = (state.digest.get(stream, 0) * 31 + nonce) % MODULUS
        state.count += 1

    @handle
    def on_look(self, look: Look) -> None:
        state = self.state
        self.reply(Seen(state.count, state.last, state.digest, state.wrong, state.outside, state.skipped))


class Source(Recorder):
    def on_loop(self) -> float | None:
        if self.state.finished:
            return None
        for _ in range(BURST):
            self.state.count += 1
            self.send(Item(self.state.count))
        return 0.001

    @handle
    def on_finish(self, finish: Finish) -> None:
        self.state.finished = True


class Side(Recorder):
    side = ""

    @handle
    def on_item(self, item: Item) -> None:
        nonce = random.getrandbits(60)
        self.take("source", item.n, nonce)
        self.send(Part(self.side, item.n, nonce))


class Left(Side):
    side = "left"


class Right(Side):
    side = "right"


class Join(Recorder):
    @handle(batch=True)
    def on_parts(self, parts: list[Part]) -> None:
        for part in parts:
            self.join(part)

    def join(self, part: Part) -> None:
        self.take(part.side, part.n, part.nonce)
        if part.side == "left" and part.n % TOKEN_EVERY == 0:
            self.send(Token(part.n, HOPS))


class Player(Recorder):
    @handle
    def on_token(self, token: Token) -> None:
        self.take(f"hops {token.hops}", token.n, step=TOKEN_EVERY)
        if token.hops:
            self.send(Token(token.n, token.hops - 1))
        else:
            self.send(Done(token.n))


class Ping(Player):
    pass


class Pong(Player):
    pass


class Sink(Recorder):
    @handle
    def on_done(self, done: Done) -> None:
        self.take("done", done.n, step=TOKEN_EVERY)

    @handle
    def on_outside(self, outside: Outside) -> None:
        state = self.state
        if outside.n <= state.outside:
            state.wrong.append(f"outside: {outside.n} came after {state.outside}")
        state.skipped.extend(range(state.outside + 1, outside.n))
        state.outside = outside.n


def topology(directory: Path, mutation: str = "") -> Topology:
    """Small rings, so that they are full at times; attempts and restarts without limit, since every kill counts."""
    ledgers = directory / "ledgers"
    ledgers.mkdir(parents=True, exist_ok=True)
    app = Topology(
        "torture",
        directory=directory / "run",
        ring_bytes=1 << 14,
        max_message_bytes=1 << 12,
        outbox_limit_bytes=1 << 16,
        max_attempts=1000,
        max_restarts=10**9,
        restart_period=1.0,  # what is remembered of each restart is soon forgotten
        backoff_first=0.001,
        backoff_max=0.01,
        drain_timeout=60.0,
    )
    classes = (Source, Left, Right, Join, Ping, Pong, Sink)
    for name, cls in zip(WORKERS, classes, strict=True):
        app.worker(f"w-{name}", **{name: cls.spec(str(ledgers), mutation)})
        app.external(name)
    app.route("source", Item, to=["left", "right"])
    app.route("left", Part, to="join")
    app.route("right", Part, to="join")
    app.route("join", Token, to="ping")
    app.route("ping", Token, to="pong")
    app.route("pong", Token, to="ping")
    app.route("ping", Done, to="sink")
    app.route("pong", Done, to="sink")
    return app
