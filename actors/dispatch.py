"""Runs handlers over what arrived, as transactions: all of a batch takes effect, or nothing of it.

A batch is handled and committed together. When something in it fails, the batch is rolled back and handled again
*carefully*: every message is a transaction of its own, and messages to handlers of the same worker become
transactions of their own too, so that the failure is blamed on one message exactly. That one is tried again until its
attempts are used up, and is then committed as a dead letter; the others take effect as if nothing had happened.

When the disk is full, messages are handled one by one too: those whose handling sends nothing take effect, and the
first one of a link that does send waits, with all behind it, until there is room.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from actors.codec import FLAG_ASK, FLAG_ERROR, FLAG_REPLY, RunCodec
from actors.endpoint import Endpoint
from actors.errors import MessageTooLarge, SenderError
from actors.hosted import Context, Hosted
from actors.links import Arrival, Link
from actors.message import Message
from actors.outgoing import EncodedRun, Outgoing
from actors.plan import GATEWAY, Plan
from actors.replies import pack_answer, pack_failure
from actors.resume import SESSION
from actors.system_errors import NothingToReply
from bus import Field
from persist.errors import JournalFull
from persist.format import DeadLetter

INLINE_LIMIT = 10_000  # messages between handlers of the worker in one transaction; the rest is carried over
BATCH_NS = (
    20_000_000  # after which a batch is committed, so that the control lane is looked at however slow handlers are
)
LOOP_PAUSE = 0.01  # before the next call of an on_loop that sent nothing and did not say
FULL_PAUSE = 0.1  # before what found no room on the disk is tried again
DETAIL_LIMIT = 8192  # bytes of a traceback kept with a dead letter


class Inlet:
    """What the worker does with a route: how to decode it, and whom to call."""

    __slots__ = ("calls", "codec", "targets", "type_name")

    def __init__(self, codec: RunCodec, type_name: str, targets: list[tuple[Hosted, str]]) -> None:
        self.codec = codec
        self.type_name = type_name
        self.targets = targets
        self.calls: list[tuple[Hosted, Any]] = []

    def bind(self) -> None:
        """To the handlers' present instances."""
        self.calls = [(hosted, getattr(hosted.instance, method)) for hosted, method in self.targets]


class Prepared(NamedTuple):
    """A transaction with everything encoded: what could fail in the user's values has not failed."""

    runs: list[EncodedRun]
    states: list[tuple[int, bytes]]
    keys: list[tuple[int, bytes, bytes | None]]


class Dispatcher:
    """The handlers of one worker over its endpoint. `attempts` counts failed tries of (peer index, seq)."""

    def __init__(
        self,
        plan: Plan,
        endpoint: Endpoint,
        hosted: Sequence[Hosted],
        outgoing: Outgoing,
        inlets: dict[int, Inlet],
        context: Context,
        attempts: dict[tuple[int, int], int],
        session: str,
    ) -> None:
        self.hosted = list(hosted)
        self.attempts = attempts
        self._plan = plan
        self._endpoint = endpoint
        self._outgoing = outgoing
        self._inlets = inlets
        self._context = context
        self._cells = endpoint.cells
        self._session = session.encode()
        self._codecs: dict[type, RunCodec] = {}  # of replies
        self._touched: set[Hosted] = set()
        self._began = (0, 0)  # (peer index, seq) of the last message of the run at hand
        self._inline = INLINE_LIMIT
        self._budget = INLINE_LIMIT
        self._until = 0
        self._handled = 0  # messages, in the transaction at hand
        self._gateway = next(link.index for link in endpoint.links if link.name == GATEWAY)
        self._reply_route = plan.reply_route(endpoint.me.name).id
        self.blocked: set[Link] = set()  # links whose next message sends, while the disk is full
        self.blocked_until = 0.0  # when they are tried again, monotonic
        self._crowded = False  # the disk was full at the last try
        self.leaving = False  # a handler has asked for the end of this worker, and that is committed
        context.reply = self._reply

    # ------------------------------------------------------------------------------------------------ lifecycle
    def start(self, again: bool) -> None:
        """Makes the handlers and calls their `on_start`. What they raise ends the worker.

        `on_start` runs whenever a handler is made, so that it can open what it needs; what it sends and changes takes
        effect once per start of the system. `again`: this start's has taken effect before.
        """
        for hosted in self.hosted:
            hosted.make()
        self._bind()
        for hosted in self.hosted:
            self._start_one(hosted)
        if again:
            self._forget_start(self.hosted)
        else:
            prepared = self._prepare()
            prepared.keys.append((len(self.hosted), SESSION, self._session))
            self._commit(prepared)
            # failpoint: start-committed

    def stop(self) -> None:
        """Calls `on_stop` of every handler, in reverse order, as one transaction."""
        for hosted in reversed(self.hosted):
            if hosted.plan.description.has_on_stop:
                self._enter(hosted)
                hosted.instance.on_stop()
        try:
            self._commit(self._prepare())
        except JournalFull:
            self._clear()  # as if it had died right before: nothing of on_stop has taken effect

    def _start_one(self, hosted: Hosted) -> None:
        # failpoint: on-start-before
        if hosted.plan.description.has_on_start:
            self._enter(hosted)
            hosted.instance.on_start()
            # failpoint: on-start-after

    def _forget_start(self, again: Iterable[Hosted]) -> None:
        """What `on_start` sent and changed took effect before, so not again."""
        for hosted in again:
            hosted.reset_state()
        self._context.stop = self._context.end = False
        self._clear()

    def _bind(self) -> None:
        for inlet in self._inlets.values():
            inlet.bind()

    def _enter(self, hosted: Hosted) -> None:
        """Its code runs from now on; until `_prepare` or `_clear`, when it has returned to the loop."""
        self._touched.add(hosted)
        self._context.handler = hosted.name
        if hosted.timed:  # has a busy_limit; the time first, so that it is never another one's
            self._cells[Field.BUSY_SINCE_NS] = time.monotonic_ns()
        self._cells[Field.BUSY_HANDLER] = hosted.index + 1

    # ------------------------------------------------------------------------------------------------ messages
    def run(self, arrivals: Sequence[Arrival]) -> Sequence[Arrival]:
        """Handles and commits what arrived, for a bounded time; returns what is left for the next call.

        What is not left is consumed and its space in the rings is free.
        """
        self._until = time.monotonic_ns() + BATCH_NS
        if self.attempts or self._crowded:
            arrivals = self._carefully(arrivals)
        else:
            try:
                left = self._handle_all(arrivals)
                prepared = self._prepare()
            except Exception:  # whatever user code raises; the careful way finds out which message it was
                # Anything up to the last message begun may be the cause.
                self.attempts[self._began] = 0
                self._rollback()
            else:
                try:
                    self._commit(prepared)
                    arrivals = left
                except JournalFull:
                    self._crowded = True
                    self._rollback()
        self._cells[Field.BUSY_PEER] = 0
        self._endpoint.release({arrival.link for arrival in arrivals} if arrivals else ())
        return arrivals

    def _handle_all(self, arrivals: Sequence[Arrival]) -> Sequence[Arrival]:
        """Handles until time or the size of a batch is up; returns what is left."""
        room = self._plan.limits.batch
        for number, arrival in enumerate(arrivals):
            skip = self._endpoint.admit(arrival)
            if skip < arrival.length and not self._handle(arrival, skip):
                return arrivals[number:]
            room -= arrival.length
            if room <= 0:
                return arrivals[number + 1 :]
        return ()

    def _handle(self, arrival: Arrival, skip: int) -> bool:
        """Handles a run but for the messages to skip. False if time was up before its end; the rest is then new."""
        inlet = self._inlets[arrival.route]
        messages = inlet.codec.decode_run(arrival.body)
        # failpoint: run-decoded
        if skip:
            messages = messages[skip:]
        seq = first = arrival.first + skip
        self._begin(arrival, seq)
        # failpoint: message-begun
        # The hot loop: what one message costs is decided here.
        cells, context, local, now, until = (
            self._cells,
            self._context,
            self._outgoing.local,
            time.monotonic_ns,
            self._until,
        )
        busy_seq, busy_since = int(Field.BUSY_SEQ), int(Field.BUSY_SINCE_NS)
        alone = len(inlet.calls) == 1
        if alone:
            self._enter(inlet.calls[0][0])
        call = inlet.calls[0][1] if alone else lambda message: self._call(inlet, message)
        for message in messages:
            cells[busy_seq] = context.seq = seq
            cells[busy_since] = began = now()
            if began > until and seq > first:
                break
            # failpoint: handler-before
            call(message)
            # failpoint: handler-after
            if local:
                self._drain_local()
                if alone:
                    self._enter(inlet.calls[0][0])
            seq += 1
        self._handled += seq - first
        arrival.link.inbound.stage(seq - 1)
        # failpoint: run-staged
        return seq - first == len(messages)

    def _begin(self, arrival: Arrival, seq: int) -> None:
        """The message in progress, for whoever has to find out what a worker died of."""
        context = self._context
        context.peer, context.seq, context.flags, context.replied = arrival.link.name, seq, arrival.flags, False
        self._began = (arrival.link.index, arrival.first + arrival.length - 1)
        self._cells[Field.BUSY_SEQ] = seq
        self._cells[Field.BUSY_SINCE_NS] = time.monotonic_ns()
        self._cells[Field.BUSY_PEER] = arrival.link.index + 1

    def _call(self, inlet: Inlet, message: Any) -> None:
        fresh = message
        for number, (hosted, call) in enumerate(inlet.calls):
            if number and not inlet.codec.late:
                # What one handler may have changed is not what the next one gets.
                fresh = inlet.codec.decode_one(inlet.codec.encode_one(message))
            self._enter(hosted)
            call(fresh)

    def _drain_local(self) -> None:
        """Messages to handlers of this worker, in the same transaction, unless older ones are still carried over."""
        local, me = self._outgoing.local, self._endpoint.me
        if me.outbound.assigned != me.inbound.seen:
            return
        handled = 0
        while local and self._budget > 0:
            self._budget -= 1
            lane, message = local.popleft()
            inlet = self._inlets[lane.route]
            for hosted, call in inlet.calls:
                self._enter(hosted)
                call(message if lane.codec.late else inlet.codec.decode_one(message))
            # failpoint: local-handled
            handled += 1
        self._handled += handled

    # ------------------------------------------------------------------------------------------------ transactions
    def _prepare(self) -> Prepared:
        states: list[tuple[int, bytes]] = []
        keys: list[tuple[int, bytes, bytes | None]] = []
        for hosted in self._touched:
            state, changed = hosted.changes()
            if state is not None:
                states.append((hosted.index, state))
            keys.extend((hosted.index, key, value) for key, value in changed)
        runs = self._outgoing.encode(self._endpoint.me.index) if self._outgoing else []
        self._cells[Field.BUSY_HANDLER] = 0
        # failpoint: state-encoded
        return Prepared(runs, states, keys)

    def _commit(self, prepared: Prepared, dead: Sequence[DeadLetter] = ()) -> None:
        if self._context.stop:
            # Before the append: a wish that is lost with a crash in between would never be repeated, while one that
            # comes too early only drains a little sooner.
            self._cells[Field.STOP_REQUESTED] = 1
            self._context.stop = False
        leaving, self._context.end = self._context.end, False
        # failpoint: transaction-prepared
        self._endpoint.commit(prepared.runs, prepared.states, prepared.keys, dead)
        # failpoint: transaction-committed
        self.leaving |= leaving
        self._cells[Field.HANDLED] += self._handled
        for hosted in self._touched:
            hosted.committed()
        self._clear()

    def _clear(self) -> None:
        self._cells[Field.BUSY_HANDLER] = 0
        self._touched.clear()
        self._outgoing.clear()
        self._handled = 0
        self._budget = self._inline

    def _rollback(self) -> None:
        """As after the last commit. Handlers that took part are made anew from their committed state."""
        self._cells[Field.ROLLBACKS] += 1
        # failpoint: rollback-begun
        self._endpoint.rollback()
        touched = list(self._touched)
        self._context.stop = self._context.end = False
        self._clear()
        for hosted in touched:
            self._enter(hosted)
            hosted.make()
        self._bind()
        # failpoint: rollback-made-anew
        for hosted in touched:
            self._start_one(hosted)
        self._forget_start(touched)

    # ------------------------------------------------------------------------------------------------ carefully
    def _carefully(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """One message, one transaction, nothing inline, until no suspect is left and there is room on the disk; returns
        what then remains."""
        if time.monotonic() >= self.blocked_until:
            self.blocked.clear()
        suspected = {peer for peer, _ in self.attempts}
        ordered = sorted(arrivals, key=lambda arrival: arrival.link.index not in suspected)  # stable: order per link
        left: list[Arrival] = []  # in the order in which they came
        self._inline = self._budget = 0
        try:
            for number, arrival in enumerate(ordered):
                if arrival.link in self.blocked:
                    left.append(arrival)
                    continue
                skip = self._endpoint.admit(arrival)
                if skip < arrival.length:
                    raws = msgspec.msgpack.decode(arrival.body, type=list[msgspec.Raw])
                    for seq, raw in enumerate(raws[skip:], arrival.first + skip):
                        try:
                            self._alone(arrival, seq, bytes(raw))
                        except JournalFull:
                            self._block(arrival.link)
                            left.append(arrival)
                            break
                        self._forget_passed()
                        if not (self.attempts or self._crowded) or time.monotonic_ns() > self._until:
                            # What is consumed of this one is known by the watermark inside it.
                            whole = seq == arrival.first + arrival.length - 1
                            return left + ordered[number + whole :]
        finally:
            self._inline = self._budget = INLINE_LIMIT
        self._crowded = bool(left)
        return left

    def _block(self, link: Link) -> None:
        """Its next message found no room on the disk: it has to wait, and all behind it."""
        self._rollback()
        self._crowded = True
        self.blocked.add(link)
        self.blocked_until = time.monotonic() + FULL_PAUSE

    def _alone(self, arrival: Arrival, seq: int, raw: bytes) -> None:
        """Tries one message until it is committed: as handled, or as a dead letter once its attempts are used up."""
        key = (arrival.link.index, seq)
        detail = "its worker died while it was in progress"
        reason = "killed its worker"
        while self.attempts.get(key, 0) < self._plan.limits.max_attempts:
            try:
                self._begin(arrival, seq)
                # failpoint: careful-message
                inlet = self._inlets[arrival.route]
                self._call(inlet, inlet.codec.decode_one(raw))
                self._handled += 1
                arrival.link.inbound.stage(seq)
                prepared = self._prepare()
            except Exception as error:  # whatever user code raises
                self.attempts[key] = self.attempts.get(key, 0) + 1
                reason = f"{type(error).__name__}: {error}"
                detail = "".join(traceback.format_exception(error))[-DETAIL_LIMIT:]
                self._rollback()
            else:
                self._commit(prepared)
                return
        self._bury(arrival, seq, raw, reason, detail)

    def _bury(self, arrival: Arrival, seq: int, raw: bytes, reason: str, detail: str) -> None:
        """The message is consumed as a dead letter: the next in order, and by the same append as any other."""
        inlet = self._inlets.get(arrival.route)
        letter = DeadLetter(
            peer=arrival.link.index,
            seq=seq,
            route=arrival.route,
            handler=",".join(hosted.name for hosted, _ in inlet.targets) if inlet else "",
            type=inlet.type_name if inlet else "",
            reason=reason,
            detail=detail,
            attempts=self.attempts.get((arrival.link.index, seq), 0),
            time_ns=time.time_ns(),
            body=raw,
        )
        arrival.link.inbound.stage(seq)
        if arrival.flags & FLAG_ASK:
            self._answer(FLAG_ERROR, pack_failure(seq, letter.handler, letter.type, reason))
        # failpoint: dead-letter-made
        self._commit(self._prepare(), [letter])
        # failpoint: dead-letter-buried

    def _forget_passed(self) -> None:
        """Attempts of consumed messages are history."""
        links = self._endpoint.links
        for peer, seq in [key for key in self.attempts if key[1] <= links[key[0]].inbound.watermark]:
            del self.attempts[peer, seq]

    # ------------------------------------------------------------------------------------------------ sources
    def run_source(self, hosted: Hosted, calls: int, until: float) -> tuple[Prepared, float | None]:
        """Up to so many calls of one `on_loop`, to be committed as one transaction, and what the last of them asked
        for. Whatever user code raises is raised here, rolled back."""
        outgoing = self._outgoing
        self._context.peer = ""
        try:
            self._enter(hosted)
            while True:
                before = outgoing.sent
                pause: float | None = hosted.instance.on_loop()
                # failpoint: source-called
                silent = outgoing.sent == before
                if outgoing.local:
                    self._drain_local()
                    self._enter(hosted)
                if pause is None and silent:
                    pause = LOOP_PAUSE
                calls -= 1
                if pause or calls <= 0 or time.monotonic() >= until:
                    break
            return self._prepare(), pause
        except Exception:
            self._rollback()
            raise

    def commit_source(self, prepared: Prepared) -> None:
        """Raises JournalFull, rolled back."""
        try:
            self._commit(prepared)
        except JournalFull:
            self._rollback()
            raise

    # ------------------------------------------------------------------------------------------------ replies
    def _reply(self, message: Message) -> None:
        context = self._context
        if not context.flags & FLAG_ASK or context.peer != GATEWAY or context.replied:
            raise NothingToReply(context.handler, type(message).__name__, context.message_id(), context.replied)
        codec = self._codecs.get(type(message))
        if codec is None:
            codec = self._codecs[type(message)] = RunCodec(type(message))
        try:
            body = pack_answer(context.seq, message, codec)
            if len(body) > self._plan.limits.max_message_bytes:
                raise MessageTooLarge(codec.type_name, len(body), self._plan.limits.max_message_bytes)
        except SenderError as error:
            error.blame(context.handler)
            raise
        # failpoint: reply-packed
        context.replied = True
        self._answer(0, body)

    def _answer(self, flags: int, body: bytes) -> None:
        """An answer goes back on the edge to the gateway."""
        self._outgoing.add(EncodedRun(self._reply_route, 1, FLAG_REPLY | flags, (self._gateway,), body))
