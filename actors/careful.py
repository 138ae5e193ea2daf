"""Handles messages one by one while something is wrong: a message failed, or killed the worker, or the disk is full.

Every message is a transaction of its own, and messages to handlers of the same worker become transactions of their own
too, so that a failure is blamed on one message exactly, and its neighbours take effect as if nothing had happened. The
one that fails is dealt with as its handlers' policies say: see `actors.attempts`.

What waits, for the time of its next attempt or for room on the disk, is a link with all that came by it: messages from
one sender stay in order. A message whose handlers keep the order makes all links wait, and the sources too. Whoever
waits, does so in the worker's loop. Nothing is in progress meanwhile, and no death is blamed on it.

Attempts are counted durably before the message is tried again if it has killed a worker, or waits. Otherwise those that
raised are counted in memory, and may be forgotten when the worker is killed by something else: the limit is then
reached later, never earlier.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from actors.answers import Answers
from actors.attempts import GiveUp, Tolerance, Wait, next_step
from actors.codec import FLAG_ASK, FLAG_COMMAND
from actors.endpoint import Endpoint
from actors.errors import BadRecord, CodecRefused, LayoutMismatch
from actors.fixed_runs import elements, is_rows
from actors.inlets import Inlet
from actors.links import Arrival, Link
from actors.system_errors import MessageFailed
from bus import Field, Text
from persist.errors import JournalFull
from persist.format import DeadLetter

if TYPE_CHECKING:
    from actors.dispatch import Dispatcher

log = logging.getLogger("ringleader")

FULL_TOLD = 30.0  # seconds between two warnings about it
FULL_PAUSE = 0.1  # before what found no room on the disk is tried again
REASON_LIMIT = 1024  # characters of what an exception says, in a dead letter and in an answer
DETAIL_LIMIT = 8192  # bytes of a traceback kept with a dead letter

Key = tuple[int, int]  # peer index, sequence number


class Careful:
    """The suspects of one worker, over its dispatcher. `attempts` counts failed tries; 0 marks a run in which somebody
    failed, by its last message. `blocked`: when a link that waits is tried again, monotonic seconds."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        endpoint: Endpoint,
        inlets: dict[int, Inlet],
        answers: Answers,
        attempts: dict[Key, int],
        max_attempts: int,
        routes: int,
    ) -> None:
        self.attempts = attempts
        self.blocked: dict[Link, float] = {}
        self.crowded = False  # the disk was full at the last try
        self.held_until = 0.0  # until then nothing at all is handled
        self._dispatcher = dispatcher
        self._endpoint = endpoint
        self._inlets = inlets
        self._answers = answers
        self._tolerances = {route: inlet.tolerance(max_attempts) for route, inlet in inlets.items()}
        self._default = Tolerance(max_attempts)
        self._routes = routes  # of the topology
        self._full: set[Link] = set()  # those of `blocked` that wait for room on the disk
        self._full_told_at = -FULL_TOLD
        self._counted = set(attempts)  # durably
        self._waiting: dict[Link, tuple[bool, float, int]] = {}  # ordered, until, seq: what waits for its time
        self._failed_at: dict[Key, float] = {}  # or when this incarnation learned of it
        self._refused: set[Key] = set()  # given up without another attempt: no codec will ever read them
        self._errors: dict[Key, tuple[str, str]] = {}  # reason and traceback of the last failure

    def run(self, arrivals: Sequence[Arrival], until: int) -> Sequence[Arrival]:
        """Handles and commits until `until`, monotonic ns; returns what is left, in order by link."""
        now = time.monotonic()
        for link in [link for link, due in self.blocked.items() if due <= now]:
            del self.blocked[link]
            self._full.discard(link)
            if self._waiting.pop(link, None):
                self._tell_waiting()
        if self._needed():
            return self._one_by_one(arrivals, until)
        # Those under suspicion wait, and so does what came by their links; nothing is wrong with the others.
        waiting = [arrival for arrival in arrivals if arrival.link in self.blocked]
        others = [arrival for arrival in arrivals if arrival.link not in self.blocked]
        return [*waiting, *self._dispatcher.batch(others)] if others else waiting

    def is_next(self, arrivals: Sequence[Arrival]) -> bool:
        """A suspect is at hand and is tried at once: what keeps its order must not come in between."""
        if not self.attempts:
            return False
        suspected = {peer for peer, _ in self.attempts}
        return any(one.link.index in suspected and one.link not in self.blocked for one in arrivals)

    def _needed(self) -> bool:
        links = self._endpoint.links
        return self.crowded or any(links[peer] not in self.blocked for peer, _ in self.attempts)

    def _one_by_one(self, arrivals: Sequence[Arrival], until: int) -> list[Arrival]:
        suspected = {peer for peer, _ in self.attempts}
        ordered = sorted(arrivals, key=lambda arrival: arrival.link.index not in suspected)  # stable: order per link
        left: list[Arrival] = []  # in the order in which they came
        with self._dispatcher.local.carried_over():
            for number, arrival in enumerate(ordered):
                if arrival.link in self.blocked:
                    left.append(arrival)
                    continue
                skip = self._endpoint.admit(arrival)
                if skip == arrival.length:
                    continue
                for seq, raw in enumerate(self._raws(arrival)[skip:], arrival.first + skip):
                    try:
                        waits = not self._alone(arrival, seq, bytes(raw))
                    except JournalFull as error:
                        self._dispatcher.rollback()
                        self.tell_full(f"message {arrival.link.name}/{seq} waits, and all behind it", error)
                        self.crowded = waits = True
                        self._full.add(arrival.link)
                        self._block(arrival.link, time.monotonic() + FULL_PAUSE)
                    if waits:
                        left.append(arrival)
                        break
                    self._forget_passed()
                    if not self._needed() or time.monotonic_ns() > until:
                        # What is consumed of this one is known by the watermark inside it.
                        whole = seq == arrival.first + arrival.length - 1
                        return left + ordered[number + whole :]
        self.crowded = bool(self._full)
        return left

    def _raws(self, arrival: Arrival) -> Sequence[memoryview | bytes | msgspec.Raw]:
        """Its messages, each one by itself. BadRecord if it is no run: nothing of it may come into a journal."""
        if arrival.flags & FLAG_COMMAND:
            return [arrival.body]
        where = f"in the ring from {arrival.link.name!r}"
        if arrival.route >= self._routes:
            raise BadRecord(f"there is no route {arrival.route}, {where}", len(arrival.body))
        if is_rows(arrival.body):
            return list(elements(arrival.body, arrival.length))
        try:
            found = msgspec.msgpack.decode(arrival.body, type=list[msgspec.Raw])
        except msgspec.MsgspecError as error:
            raise BadRecord(f"not a run of messages, {where}: {error}", len(arrival.body)) from error
        if len(found) != arrival.length:
            told = f"its header says {arrival.length} messages, not {len(found)}, {where}"
            raise BadRecord(told, len(arrival.body))
        return found

    def _alone(self, arrival: Arrival, seq: int, raw: bytes) -> bool:
        """Tries one message until it is committed, as handled or as a dead letter. False if it has to wait."""
        if arrival.flags & FLAG_COMMAND:
            self._dispatcher.obey(arrival)
            return True
        key = (arrival.link.index, seq)
        tolerance = self._tolerances.get(arrival.route, self._default)
        dispatcher = self._dispatcher
        while True:
            if key in self._refused:
                self._bury(arrival, seq, raw)
                return True
            count, now = self.attempts.get(key, 0), time.monotonic()
            match next_step(tolerance, count, self._failed_at.setdefault(key, now) if count else now, now):
                case GiveUp():
                    self._bury(arrival, seq, raw)
                    return True
                case Wait(until):
                    self._wait(arrival.link, seq, until, tolerance)
                    return False
            try:
                prepared = dispatcher.try_one(arrival, seq, raw)
            except Exception as error:  # whatever user code raises
                self.failed(key, arrival.route, arrival.link.name, error)
            else:
                dispatcher.commit(prepared)
                return True

    def failed(self, key: Key, route: int, peer: str, error: Exception) -> None:
        """This message has raised: it is rolled back and counted. Raises MessageFailed where that ends the worker."""
        tolerance = self._tolerances.get(route, self._default)
        count = self.attempts.get(key, 0) + 1
        reason = _shortened(f"{type(error).__name__}: {error}")
        if isinstance(error, (CodecRefused, LayoutMismatch)):
            self._refused.add(key)
        elif tolerance.crash:
            # The death counts, and nothing here: the message is still in progress.
            inlet = self._inlets[route]
            name = self._dispatcher.handler or inlet.handlers
            raise MessageFailed(name, f"{peer}/{key[1]}", inlet.type_name, count, reason) from error
        self._errors[key] = reason, "".join(traceback.format_exception(error))[-DETAIL_LIMIT:]
        self._dispatcher.rollback()
        if key in self._refused:
            self.attempts[key] = count
        else:
            self._count(key, count, tolerance)

    def _count(self, key: Key, count: int, tolerance: Tolerance) -> None:
        self.attempts[key] = count
        self._failed_at[key] = now = time.monotonic()
        self._endpoint.cells[Field.BUSY_PEER] = 0  # a death from here on is not another attempt
        if isinstance(next_step(tolerance, count, now, now), GiveUp):
            return  # which is what becomes durable
        if key in self._counted or tolerance.delay(count):
            with contextlib.suppress(JournalFull):  # the next one may be counted
                self._endpoint.commit(attempts=[(*key, count)])
                self._counted.add(key)
                # failpoint: attempt-counted

    def _wait(self, link: Link, seq: int, until: float, tolerance: Tolerance) -> None:
        """Either this link, or everything."""
        self._waiting[link] = tolerance.ordered, until, seq
        self._tell_waiting()
        if not tolerance.ordered:
            self._block(link, until)
            return
        self.held_until = max(self.held_until, until)
        for one in self._endpoint.links:
            self._block(one, until)

    def _tell_waiting(self) -> None:
        """For the status: the message that everything waits for, else the one whose time comes first."""
        cells = self._endpoint.cells
        cells[Field.RETRY_PEER] = 0
        if self._waiting:
            link, (ordered, until, seq) = min(self._waiting.items(), key=lambda one: (not one[1][0], one[1][1]))
            cells[Field.RETRY_SEQ], cells[Field.RETRY_ATTEMPTS] = seq, self.attempts[link.index, seq]
            cells[Field.RETRY_AT_NS], cells[Field.RETRY_ORDERED] = int(until * 1e9), ordered
            cells[Field.RETRY_PEER] = link.index + 1

    def tell_full(self, who: str, error: JournalFull) -> None:
        """Where there is a journal the status has an alarm: what is full there gets room when others consume."""
        now = time.monotonic()
        if self._endpoint.journal is None and now >= self._full_told_at + FULL_TOLD:
            self._full_told_at = now
            log.warning("%s: there is no room for what it sends: %s", who, error)

    def _block(self, link: Link, until: float) -> None:
        self.blocked[link] = max(until, self.blocked.get(link, until))

    def _bury(self, arrival: Arrival, seq: int, raw: bytes) -> None:
        """The message is consumed as a dead letter: the next in order, and by the same append as any other."""
        key = (arrival.link.index, seq)
        inlet = self._inlets.get(arrival.route)
        reason, detail = self._errors.get(key) or ("killed its worker", self._last_death())
        letter = DeadLetter(
            peer=arrival.link.index,
            seq=seq,
            route=arrival.route,
            handler=inlet.handlers if inlet else "",
            type=inlet.type_name if inlet else "",
            reason=reason,
            detail=detail,
            attempts=self.attempts.get(key, 0),
            time_ns=time.time_ns(),
            body=self._endpoint.claims.keep(raw),
        )
        arrival.link.inbound.stage(seq)
        if arrival.flags & FLAG_ASK:
            self._answers.fail(seq, letter.handler, letter.type, reason)
        # failpoint: dead-letter-made
        self._dispatcher.commit(self._dispatcher.prepare(), [letter])
        # failpoint: dead-letter-buried
        id_, tried = f"{arrival.link.name}/{seq}", f"{letter.attempts} attempt{'' if letter.attempts == 1 else 's'}"
        what, to = letter.type or f"route {arrival.route}", letter.handler or "nobody"
        log.warning("message %s, a %s to %s, became a dead letter after %s: %s", id_, what, to, tried, reason)

    def _last_death(self) -> str:
        """What the supervisor kept of the death that used up the attempts, or of a later one."""
        known = self._endpoint.block.text(Text.LAST_DEATH).strip()
        return "its worker died while it was in progress" + (f"; its last death:\n{known}" if known else "")

    def _forget_passed(self) -> None:
        """Attempts at consumed messages are history."""
        links = self._endpoint.links
        for key in [key for key in self.attempts if key[1] <= links[key[0]].inbound.watermark]:
            del self.attempts[key]
            self._failed_at.pop(key, None)
            self._errors.pop(key, None)
            self._refused.discard(key)
            self._counted.discard(key)


def _shortened(text: str) -> str:
    """An exception may carry any amount of text; neither a journal nor an answer has to."""
    return text if len(text) <= REASON_LIMIT else f"{text[:REASON_LIMIT]}... ({len(text):,} characters)"
