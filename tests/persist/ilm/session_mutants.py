"""The protocol with one mistake each, made in the real code by replacing a function: what the simulation must catch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from msgspec import structs

from persist.ilm import identity, wire
from persist.ilm.errors import LostOwnState
from persist.ilm.flight import Flight, Limits
from persist.ilm.session import NOTHING, Session
from persist.link import NEW, Inbound, Kind, Outbound, Verdict

NOISY = ("lose", "double", "reorder", "replay", "reconnect", "crash")
GOING_BACK = ("go_back", "lose", "crash")
LOSSY = ("lose_all", "go_back", "forget", "crash", "replay", "lose")


@dataclass(frozen=True)
class Mutant:
    name: str
    text: str
    patch: Callable[[], contextlib.AbstractContextManager[Any]]
    violates: str  # the invariants by which it may be caught
    faults: tuple[str, ...] = NOISY


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """`make` gets the original."""
    return lambda: patch.object(owner, name, make(getattr(owner, name)))


def ack_what_arrived(original: Any) -> Any:
    def next_frame(self: Session, now: float) -> bytes | None:
        durable, self.inbound.watermark = self.inbound.watermark, self.inbound.seen
        frame: bytes | None = original(self, now)
        self.inbound.watermark = durable
        return frame

    return next_frame


def polls_acknowledge(original: Any) -> Any:
    def rewind(self: Session, number: int) -> None:
        original(self, number)
        self.outbound.acknowledge(number)

    return rewind


def rewinds_too_far(original: Any) -> Any:
    """One message too far ahead: what is behind the acknowledged is passed over."""

    def rewind(self: Outbound, watermark: int) -> None:
        original(self, min(watermark + 1, self._reached))

    return rewind


def any_store(original: Any) -> Any:
    def received(self: Session, data: bytes, now: float) -> Any:
        frame = wire.decode(data)
        if isinstance(frame, wire.Poll):
            return original(self, data, now)
        own, peer = self.own_store, self.peer_store
        self.own_store, self.peer_store = frame.receiver, frame.sender
        try:
            return original(self, data, now)
        finally:
            self.own_store, self.peer_store = own, peer

    return received


def verdicts(change: Callable[[Verdict], Verdict]) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        return lambda self, first, count: change(original(self, first, count))

    return make


def gap_is_new(verdict: Verdict) -> Verdict:
    return Verdict(Kind.NEW) if verdict.kind is Kind.GAP else verdict


def duplicate_is_new(original: Any) -> Any:
    def admit(self: Inbound, first: int, count: int) -> Verdict:
        verdict: Verdict = original(self, first, count)
        return NEW if verdict.kind is Kind.DUPLICATE and first + count - 1 == self.seen else verdict

    return admit


def watermark_from_0(original: Any) -> Any:
    def restore(self: Session, state: Any, reach: int) -> None:
        original(self, replace(state, watermark=0), reach)

    return restore


def published_at_once(original: Any) -> Any:
    return property(lambda self: self.is_connected and self.peer_store != 0 and self.problem is None)


def believes_all(original: Any) -> Any:
    def polled(self: Session, poll: wire.Poll, now: float) -> Any:
        self._peer_nonce = poll.nonce
        if poll.ask:
            self._poll_due = True
        return self._fresh(poll, now)

    return polled


def keeps_numbers(original: Any) -> Any:
    """The own store stays what it was when a peer is forgotten."""
    return lambda peer, remembered, own, last_id: original(peer, remembered, remembered.own, last_id)


def no_offset(original: Any) -> Any:
    return lambda *known: replace(original(*known), offset=0)


def all_reach(original: Any) -> Any:
    return lambda backend, peer, own, state: replace(original(backend, peer, own, state), reach=state.assigned)


class Fits(int):
    """Equal to any id, and so is the one behind it."""

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    @classmethod
    def unpack_from(cls, body: bytes) -> tuple[Fits]:
        return (cls(),)


def own_loss_unseen(original: Any) -> Any:
    def found(self: Session, problem: Any, remember: int = 0) -> Any:
        if isinstance(problem, LostOwnState) and problem.what == "received":
            return replace(NOTHING, remember=remember)
        return original(self, problem, remember)

    return found


def ack_ends_the_greeting(original: Any) -> Any:
    def acknowledged(self: Session, number: int, now: float) -> Any:
        found = original(self, number, now)
        if found.acked and not self.greeted:
            self._flight.deadline = None
        return found

    return acknowledged


def never_asks(original: Any) -> Any:
    return lambda self, now: False


def no_answer(original: Any) -> Any:
    def polled(self: Session, poll: wire.Poll, now: float) -> Any:
        return original(self, structs.replace(poll, ask=False), now)

    return polled


def nothing(original: Any) -> Any:
    return lambda *_: None


MUTANTS = [
    Mutant(
        "ack_first",
        "acknowledged when it has arrived, before it is committed",
        replaced(Session, "next_frame", ack_what_arrived),
        "acked",
    ),
    Mutant(
        "poll_acks",
        "what the peer has in memory is taken for delivered",
        replaced(Session, "_rewind", polls_acknowledge),
        "acked",
    ),
    Mutant(
        "rewind_past",
        "published again from too far ahead",
        replaced(Outbound, "rewind", rewinds_too_far),
        "liveness acked",
    ),
    Mutant("no_rewind", "nothing is published again", replaced(Session, "_rewind", nothing), "liveness"),
    Mutant(
        "any_store",
        "the stores of a frame are not looked at",
        replaced(Session, "received", any_store),
        "once liveness order acked forget alarm",
        LOSSY,
    ),
    Mutant("gap", "what comes behind a hole is delivered", replaced(Inbound, "admit", verdicts(gap_is_new)), "order"),
    Mutant("twice", "duplicates are delivered", replaced(Inbound, "admit", duplicate_is_new), "once order"),
    Mutant(
        "no_skip",
        "a run that came in part is delivered whole",
        replaced(Inbound, "admit", verdicts(lambda verdict: NEW if verdict.skip else verdict)),
        "once order",
    ),
    Mutant(
        "watermark_0",
        "the watermark is not restored",
        replaced(Session, "restore", watermark_from_0),
        "once order alarm",
    ),
    Mutant("no_retry", "the peer is never asked again", replaced(Flight, "tick", never_asks), "liveness"),
    Mutant(
        "ack_for_answer",
        "an acknowledgement ends the wait for the answer to the greeting",
        replaced(Session, "_acknowledged", ack_ends_the_greeting),
        "liveness",
        GOING_BACK,
    ),
    Mutant("no_answer", "questions are not answered", replaced(Session, "_polled", no_answer), "liveness"),
    Mutant(
        "no_window",
        "more is in flight than the window",
        replaced(Flight, "has_room", lambda _: lambda *_: True),
        "window",
    ),
    Mutant(
        "no_inbox_limit",
        "all that arrives is kept",
        replaced(Limits, "inbox_bytes", lambda _: property(lambda self: 1 << 30)),
        "inbox",
    ),
    Mutant(
        "not_greeted",
        "published before the peer has said what it has",
        replaced(Session, "_may_publish", published_at_once),
        "once liveness alarm",
        LOSSY,
    ),
    Mutant(
        "believes_all", "late polls are believed", replaced(Session, "_polled", believes_all), "alarm liveness", LOSSY
    ),
    Mutant(
        "same_store",
        "the peer does not see that it was forgotten",
        replaced(identity, "forgetting", keeps_numbers),
        "once liveness alarm",
        LOSSY,
    ),
    Mutant("no_offset", "ids start again after a restart", replaced(identity, "recall", no_offset), "once order"),
    Mutant(
        "no_reach",
        "what was never published is taken for published",
        replaced(identity, "recall", all_reach),
        "once liveness",
        GOING_BACK,
    ),
    Mutant(
        "any_ids",
        "runs are joined whatever their ids",
        lambda: patch("persist.ilm.session.RUN_HEAD", Fits),
        "once order liveness",
    ),
    Mutant(
        "own_loss",
        "an older copy of the own state goes unnoticed",
        replaced(Session, "_found", own_loss_unseen),
        "liveness",
        LOSSY,
    ),
]
