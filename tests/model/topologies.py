"""The topologies of the simulation, and their handlers, which keep a record of everything they do in their state.

A handler's record is committed with what it consumed and sent, so that the oracle can compare them, transaction by
transaction. Every handling makes new numbers (`uid`): a message that a rolled back handling sent is never the same as
the one that its repetition sends. Handlers are not deterministic on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from actors import Handler, Message, State, Topology, handle
from actors.plan import Plan


class Token(Message):
    uid: int
    hops: int = 0
    how: str = ""  # what handling it does: "" nothing special, "raise", "die", "die at commit"


class Feed(Message):
    """From outside."""

    uid: int
    hops: int = 0
    how: str = ""


class Local(Message):
    """To a handler of the same worker."""

    uid: int


class Done(Message):
    """The answer to a Feed."""

    uid: int


Payload = Token | Feed | Local
Sent = tuple[str, int]  # message type, uid; the type of an answer is "#reply", and its uid the number of the question
Item = tuple[str, int, int, list[Sent]]  # message_id, order of handling, uid, sent


class Record(State):
    items: list[Item] = []


@dataclass
class Surroundings:
    """What handlers need of the simulation that runs them."""

    step: Callable[[str], None] = lambda kind: None
    die: Callable[[], None] = lambda: None  # now
    doom: Callable[[], None] = lambda: None  # at the commit
    flaky: Callable[[], bool] = lambda: False
    last: int = 0

    def number(self) -> int:
        self.last += 1
        return self.last


around = Surroundings()


class Actor(Handler):
    state: Record

    @property
    def place(self) -> str:
        """Which message is being handled, or caused what is; empty in `on_loop`."""
        context = vars(self)["_message_id"].__self__
        return f"{context.peer}/{context.seq}" if context.peer else ""

    def note(self, uid: int, *sends: Message, how: str = "", answered: bool = False) -> None:
        """Handles something: records it and sends."""
        around.step("handling")
        sent: list[Sent] = [(type(message).__name__, vars_of(message)["uid"]) for message in sends]
        if answered:
            sent.append(("#reply", int(self.place.rpartition("/")[2])))
        self.state.items.append((self.place, around.number(), uid, sent))
        for message in sends:
            self.send(message)
        if how == "die":
            around.die()
        if how == "die at commit":
            around.doom()
        # Not in `on_loop`: who raises there is called again much later.
        if how == "raise" or (self.place and around.flaky()):
            raise ValueError(f"cannot handle {uid}")
        around.step("handled")


def vars_of(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


class Source(Actor):
    """Sends `count` times as many messages as `burst` says. Number `poison` of them, from 1, is poisonous."""

    def __init__(self, count: int, burst: int = 1, poison: int = 0, how: str = "", hops: int = 0) -> None:
        self.count, self.burst, self.poison, self.how, self.hops = count, burst, poison, how, hops

    def on_loop(self) -> float:
        done = len(self.state.items)
        if done >= self.count:
            return math.inf
        tokens = []
        for number in range(done * self.burst + 1, (done + 1) * self.burst + 1):
            how = self.how if number == self.poison else ""
            tokens.append(Token(around.number(), self.hops, how))
        self.note(done + 1, *tokens)
        return 1e-9  # again at the next turn


class Sink(Actor):
    @handle
    def on_token(self, token: Token) -> None:
        self.note(token.uid, how=token.how)


class Relay(Actor):
    """Passes on each message as a new one."""

    @handle
    def on_token(self, token: Token) -> None:
        self.note(token.uid, Token(around.number()), how=token.how)


class Player(Actor):
    """Passes a message back until its hops are used up; starts one, or two, for each Feed."""

    def __init__(self, balls: int = 1) -> None:
        self.balls = balls

    @handle
    def on_feed(self, feed: Feed) -> None:
        balls = [Token(around.number(), feed.hops) for _ in range(self.balls)]
        self.reply(Done(feed.uid))
        self.note(feed.uid, *balls, how=feed.how, answered=True)

    @handle
    def on_token(self, token: Token) -> None:
        passed = [Token(around.number(), token.hops - 1)] if token.hops else []
        self.note(token.uid, *passed, how=token.how)


class Front(Actor):
    """Gives each message to a handler of the same worker, in three parts, and passes it on."""

    @handle
    def on_token(self, token: Token) -> None:
        parts = [Local(around.number()) for _ in range(3)]
        self.note(token.uid, *parts, Token(around.number()), how=token.how)


class Back(Actor):
    @handle
    def on_local(self, local: Local) -> None:
        self.note(local.uid, Token(around.number()))


@dataclass
class Scene:
    """A topology under test. `feeds`: handler -> what is sent to it from outside, in order."""

    name: str
    plan: Plan
    feeds: dict[str, list[Feed]] = field(default_factory=dict)
    inline_limit: int = 10_000
    segment_bytes: int = 1500
    one_record: bool = False  # rings with room for one record

    @property
    def loops(self) -> dict[str, int]:
        """Source -> how often it sends."""
        found = {}
        for handler in self.plan.handlers:
            if handler.spec.cls is Source:
                found[handler.name] = int(handler.spec.args[0])
        return found


def _topology(name: str, level: str, **numbers: int) -> Topology:
    limits: dict[str, Any] = {"ring_bytes": 4096, "max_message_bytes": 1024, "max_attempts": 1_000_000} | numbers
    return Topology(name, durability=level, directory="/nowhere", **limits)


def pair(
    level: str,
    *,
    count: int = 3,
    burst: int = 2,
    poison: int = 0,
    how: str = "",
    segment_bytes: int = 1500,
    **numbers: int,
) -> Scene:
    """S -> R."""
    app = _topology("pair", level, **numbers)
    app.worker("s", source=Source.spec(count, burst, poison, how))
    app.worker("r", sink=Sink)
    app.route("source", Token, to="sink")
    return Scene("pair", app.compile(), segment_bytes=segment_bytes)


def join(level: str, *, count: int = 2, burst: int = 1, poison: int = 0, how: str = "", **numbers: int) -> Scene:
    """S1, S2 -> R -> T; rings hold one record."""
    app = _topology("join", level, **numbers)
    app.worker("s1", source1=Source.spec(count, burst, poison, how))
    app.worker("s2", source2=Source.spec(count, burst))
    app.worker("r", relay=Relay)
    app.worker("t", sink=Sink)
    app.route("source1", Token, to="relay")
    app.route("source2", Token, to="relay")
    app.route("relay", Token, to="sink")
    return Scene("join", app.compile(), one_record=True)


def cycle(level: str, *, feeds: int = 2, hops: int = 3, balls: int = 2, **numbers: int) -> Scene:
    """A <-> B, fed from outside; rings hold one record, outboxes are small."""
    app = _topology("cycle", level, **{"outbox_limit_bytes": 200} | numbers)
    app.worker("a", left=Player.spec(balls))
    app.worker("b", right=Player.spec(balls))
    app.route("left", Token, to="right")
    app.route("right", Token, to="left")
    app.external("left", Feed)
    app.external("right", Feed)
    given = {name: [Feed(-number, hops) for number in range(1, feeds + 1)] for name in ("left", "right")}
    return Scene("cycle", app.compile(), given, one_record=True)


def carry(level: str, *, count: int = 3, **numbers: int) -> Scene:
    """S -> W and T (one record for both), W -> itself by way of its outbox -> T."""
    app = _topology("carry", level, **{"outbox_limit_bytes": 300} | numbers)
    app.worker("s", source=Source.spec(count, 2))
    app.worker("w", front=Front, back=Back)
    app.worker("t", sink=Sink)
    app.route("source", Token, to=["front", "sink"])
    app.route("front", Local, to="back")
    app.route("front", Token, to="sink")
    app.route("back", Token, to="sink")
    return Scene("carry", app.compile(), inline_limit=2)


def poisoned_pair(level: str, *, poison: int = 3, how: str = "die", **numbers: int) -> Scene:
    """S -> R; one message is given up after three attempts."""
    return replace(pair(level, poison=poison, how=how, max_attempts=3, **numbers), name=f"pair, {poison} {how}")


def poisoned_join(level: str, *, poison: int = 2, how: str = "die") -> Scene:
    return replace(join(level, poison=poison, how=how, max_attempts=3), name=f"join, {poison} {how}")


SCENES: dict[str, Callable[..., Scene]] = {"pair": pair, "join": join, "cycle": cycle, "carry": carry}
