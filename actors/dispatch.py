"""Runs handlers over what arrived, as transactions: all of a batch takes effect, or nothing of it.

A batch is handled and committed together. When something in it fails, the batch is rolled back and handled again
*carefully* (`actors.careful`): every message is a transaction of its own, the one that fails is tried again or given up
as its handlers' policies say, and the others take effect as if nothing had happened.

When the disk is full, messages are handled one by one too: those whose handling sends nothing take effect, and the
first one of a link that does send waits, with all behind it, until there is room.

A command to the worker, about its dead letters, is a transaction of its own between two batches.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from actors.answers import Answers
from actors.careful import Careful
from actors.codec import FLAG_ASK, FLAG_COMMAND, FLAG_REQUEUED
from actors.endpoint import Endpoint
from actors.errors import BadRecord, ViewEscaped
from actors.hosted import Context, Hosted
from actors.inlets import Inlet
from actors.letter_commands import Effect, effect
from actors.links import Arrival
from actors.local_messages import LocalMessages
from actors.outgoing import EncodedRun, Outgoing
from actors.plan import Plan
from actors.resume import SESSION
from actors.views import Views
from bus import Field
from persist.errors import JournalFull
from persist.format import DeadLetter

# After which a batch is committed, so that the control lane is looked at however slow handlers are.
BATCH_NS = 20_000_000
LOOP_PAUSE = 0.01  # before the next call of an on_loop that sent nothing and did not say


class Prepared(NamedTuple):
    """A transaction with everything encoded: what could fail in the user's values has not failed."""

    runs: list[EncodedRun]
    states: list[tuple[int, bytes]]
    keys: list[tuple[int, bytes, bytes | None]]


class _Unreadable(Exception):
    """Something in a run cannot be decoded; which message it is, the careful way finds out."""


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
        views: Views,
    ) -> None:
        self.hosted = list(hosted)
        self._plan = plan
        self._endpoint = endpoint
        self._outgoing = outgoing
        self._inlets = inlets
        self._context = context
        self._cells = endpoint.cells
        self._session = session.encode()
        self._views = views
        self._touched: set[Hosted] = set()
        self._progress = context.progress
        self._began = (0, 0)  # (peer index, seq) of the last message of the run at hand
        self._route = 0  # of that run
        self.local = LocalMessages(outgoing, endpoint.me, inlets, context, self._enter)
        self._until = 0
        self._handled = 0  # messages, in the transaction at hand
        self._removed: list[tuple[int, int]] = []  # dead letters, by the transaction at hand
        self._answers = Answers(plan, endpoint.me.name, outgoing, context)
        self.careful = Careful(
            self, endpoint, inlets, self._answers, attempts, plan.limits.max_attempts, len(plan.routes)
        )
        self.attempts = attempts
        self.blocked = self.careful.blocked
        self.leaving = False  # a handler has asked for the end of this worker, and that is committed

    @property
    def settled(self) -> bool:
        """Nothing has failed, waits or ends."""
        return not (self.attempts or self.blocked or self.careful.crowded or self.leaving)

    # ------------------------------------------------------------------------------------------------ lifecycle
    def start(self, again: bool) -> None:
        """Makes the handlers and calls their `on_start`. What they raise ends the worker.

        `on_start` runs whenever a handler is made, so that it can open what it needs; what it sends and changes takes
        effect once per start of the system. `again`: this start's has taken effect before.
        """
        self._make(self.hosted)
        if again:
            self._forget_start(self.hosted)
        else:
            prepared = self.prepare()
            prepared.keys.append((len(self.hosted), SESSION, self._session))
            self.commit(prepared)
            # failpoint: start-committed

    def stop(self) -> None:
        """Calls `on_stop` of every handler, in reverse order, as one transaction."""
        self._context.peer = ""
        for hosted in reversed(self.hosted):
            if hosted.plan.description.has_on_stop:
                self._enter(hosted)
                hosted.instance.on_stop()
        try:
            self.commit(self.prepare())
        except JournalFull:
            self._clear()  # as if it had died right before: nothing of on_stop has taken effect

    def _make(self, hosted: Sequence[Hosted]) -> None:
        """Anew, from their committed state. An `on_start` that fails is called again, as often as its handler's policy
        says by itself: all of them are then made once more, so that nothing is sent twice."""
        failures: Counter[str] = Counter()
        self._context.peer = ""  # no message is in progress
        while True:
            for one in hosted:
                self._enter(one)
                one.make()
            self._touched.clear()  # to be made changes nothing
            self._bind()
            # failpoint: handlers-made
            try:
                for one in hosted:
                    self._start_one(one)
            except Exception:
                failing = self._plan.handler(self._context.handler)
                failures[failing.name] += 1
                if failures[failing.name] >= (failing.policy.max_attempts or 1):
                    raise
                self._clear()
            else:
                return

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
        """Its code runs from now on; until `prepare` or `_clear`, when it has returned to the loop."""
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
        careful = self.careful
        if self.attempts or careful.crowded:
            arrivals = careful.run(arrivals, self._until)
        else:
            arrivals = self.batch(arrivals)
        if self._views.escaped and (kept := self._views.gone()):
            # failpoint: view-outlives
            raise ViewEscaped(kept, tuple(one.name for one in self.hosted))
        self._cells[Field.BUSY_PEER] = 0
        self._endpoint.release({arrival.link for arrival in arrivals} if arrivals else ())
        return arrivals

    def batch(self, arrivals: Sequence[Arrival]) -> Sequence[Arrival]:
        """All that there is time and room for, as one transaction; returns what is left."""
        handled = False
        try:
            left = self._handle_all(arrivals)
            handled = True
            prepared = self.prepare()
        except Exception as error:  # whatever user code raises
            context = self._context
            alone = not context.local and not context.many and not isinstance(error, _Unreadable)
            if not handled and alone:
                # The message at hand has failed, and what came before it in this batch is handled again first.
                self.careful.failed((self._began[0], context.seq), self._route, context.peer, error)
            else:
                # Anything up to the last message of the run may be the cause; the careful way finds out what it was.
                self.attempts[self._began] = 0
                self.rollback()
            return arrivals
        try:
            self.commit(prepared)
        except JournalFull:
            self.careful.crowded = True
            self.rollback()
            return arrivals
        return left

    def _handle_all(self, arrivals: Sequence[Arrival]) -> Sequence[Arrival]:
        """Handles until time or the size of a batch is up; returns what is left."""
        if len(arrivals) == 1 and self._handle_alone(arrivals[0]):
            return ()
        room = self._plan.limits.batch
        for number, arrival in enumerate(arrivals):
            skip = self._endpoint.admit(arrival)
            if skip < arrival.length:
                if arrival.flags & FLAG_COMMAND:
                    if self._handled:
                        return arrivals[number:]
                    self._obey(arrival)
                    return arrivals[number + 1 :]
                if not self._handle(arrival, skip):
                    return arrivals[number:]
            room -= arrival.length
            if room <= 0 or self._outgoing.heavy or time.monotonic_ns() > self._until:
                return arrivals[number + 1 :]
        return ()

    def _handle_alone(self, arrival: Arrival) -> bool:
        """Handles a message that came by itself, for one handler, as `_handle` would. False: it is no such message, and
        nothing was done."""
        inlet, link, first = self._inlets.get(arrival.route), arrival.link, arrival.first
        if inlet is None or inlet.alone is None or arrival.length != 1 or arrival.flags:
            return False
        if first != link.inbound.seen + 1 or link is self._endpoint.me:
            return False
        try:
            (message,) = inlet.codec.decode_run(arrival.body)[:2]
        except Exception:
            return False  # `_handle` tells what is wrong
        # failpoint: run-decoded
        hosted, call = inlet.alone
        # As `_begin` and `_enter` do it, which would make the whole of a lone message a tenth slower.
        context, cells = self._context, self._cells
        context.peer, context.flags, context.replied, context.many = link.name, 0, False, False
        context.local = False
        context.handler = hosted.name
        self._touched.add(hosted)
        self._began = link.index, first
        self._route = arrival.route
        self._progress.tell(first)
        cells[Field.BUSY_MANY] = 0
        cells[Field.BUSY_PEER] = link.index + 1
        # failpoint: message-begun
        cells[Field.BUSY_HANDLER] = hosted.index + 1
        # failpoint: handler-before
        call(message)
        # failpoint: handler-after
        if self._outgoing.local:
            self._handled += self.local.drain(self._until)
            self._enter(hosted)  # what is left to be done, is done for this one
        self._handled += 1
        link.inbound.stage(first)
        # failpoint: run-staged
        return True

    def _handle(self, arrival: Arrival, skip: int) -> bool:
        """Handles a run but for the messages to skip. False if time was up before its end; the rest is then new."""
        try:
            inlet = self._inlets[arrival.route]
            messages = inlet.codec.decode_run(arrival.body)
            if len(messages) != arrival.length:
                raise BadRecord(f"its header says {arrival.length} messages, not {len(messages)}", len(arrival.body))
        except Exception as error:
            self._began = (arrival.link.index, arrival.first + arrival.length - 1)
            raise _Unreadable from error
        # failpoint: run-decoded
        if skip:
            messages = messages[skip:]
        first = arrival.first + skip
        self._begin(arrival, first)
        # failpoint: message-begun
        if inlet.batched and not arrival.flags & FLAG_ASK:  # each of those is replied to
            done = self._handle_together(inlet, arrival, messages, first)
        else:
            done = self._handle_each(inlet, messages, first)
        self._handled += done
        arrival.link.inbound.stage(first + done - 1)
        # failpoint: run-staged
        return done == len(messages)

    def _handle_each(self, inlet: Inlet, messages: Any, first: int) -> int:
        """One by one until time is up; returns how many. The hot loop: what a message costs is decided here."""
        each = inlet.codec.each(messages)
        progress, local = self._progress.begin(each, first, self._until, inlet.exact), self._outgoing.local
        single = inlet.calls[0] if len(inlet.calls) == 1 else None
        if single:
            self._enter(single[0])
        call = single[1] if single else lambda message: self._call(inlet, message)
        for message in progress:
            # failpoint: handler-before
            call(message)
            # failpoint: handler-after
            if local:
                self._handled += self.local.drain(self._until)
                if single:
                    self._enter(single[0])
        return progress.done

    def _handle_together(self, inlet: Inlet, arrival: Arrival, messages: Any, first: int) -> int:
        """All of them at once by batch handlers. The last one is in progress until then: who looks for the cause of a
        death begins with the first."""
        count = len(messages)
        for number, (hosted, call, batch) in enumerate(inlet.together):
            given = messages[:]  # the list is the handler's own
            if number and not inlet.codec.late:
                given = inlet.codec.decode_run(arrival.body)[-count:]  # and so is what can be changed inside it
            self._enter(hosted)
            if batch:
                self._context.many = count > 1
                self._cells[Field.BUSY_MANY] = count > 1
                self._progress.tell(first + count - 1)
                # failpoint: batch-before
                call(given)
                # failpoint: batch-after
                self._handled += self.local.drain(self._until)
                self._context.many = False
            else:
                each = inlet.codec.each(given)
                for message in self._progress.begin(each, first, sys.maxsize, inlet.exact):
                    call(message)
                    self._handled += self.local.drain(self._until)
                    self._enter(hosted)
        return count

    def _begin(self, arrival: Arrival, seq: int) -> None:
        """The message in progress, for whoever has to find out what a worker died of."""
        context = self._context
        context.peer, context.flags, context.replied, context.many = arrival.link.name, arrival.flags, False, False
        context.local = arrival.link is self._endpoint.me and not arrival.flags & FLAG_REQUEUED
        self._began = (arrival.link.index, arrival.first + arrival.length - 1)
        self._route = arrival.route
        self._progress.tell(seq)
        cells = self._cells
        cells[Field.BUSY_MANY] = 0
        cells[Field.BUSY_PEER] = arrival.link.index + 1

    def try_one(self, arrival: Arrival, seq: int, raw: bytes) -> Prepared:
        """Handles a single message, to be committed as a transaction. Whatever user code raises is raised here, and not
        rolled back."""
        self._begin(arrival, seq)
        # failpoint: careful-message
        self._context.handler = ""
        inlet = self._inlets[arrival.route]
        self._call(inlet, inlet.codec.decode_one(raw))
        self._handled += 1
        arrival.link.inbound.stage(seq)
        return self.prepare()

    @property
    def handler(self) -> str:
        """The one that was called last."""
        return self._context.handler

    def obey(self, arrival: Arrival) -> None:
        """Deals with a command, by a transaction. Raises JournalFull."""
        self._obey(arrival)
        self.commit(self.prepare())

    def _obey(self, arrival: Arrival) -> None:
        endpoint = self._endpoint
        try:
            done = effect(arrival.body, endpoint.dead, endpoint.dead_peers, self._inlets, endpoint.me.index)
        except msgspec.MsgspecError as error:
            done = Effect([], [], [f"not a command: {error}"])
        arrival.link.inbound.stage(arrival.first)
        self._removed = done.removed
        for run in done.runs:
            self._outgoing.add(run)
        self._answers.tell(arrival.first, done.problems)

    def _call(self, inlet: Inlet, message: Any) -> None:
        fresh = message
        for number, (hosted, call) in enumerate(inlet.calls):
            if number and not inlet.codec.late:
                # What one handler may have changed is not what the next one gets.
                fresh = inlet.codec.decode_one(inlet.codec.encode_one(message))
            self._enter(hosted)
            call(fresh)

    # ------------------------------------------------------------------------------------------------ transactions
    def prepare(self) -> Prepared:
        if self._views.lent:
            self._progress.begin([], 0, 0, False)  # it holds the records of the last run
            if kept := self._views.take_back():
                # failpoint: view-escaped
                raise ViewEscaped(kept, tuple(sorted(one.name for one in self._touched)))
        states: list[tuple[int, bytes]] = []
        keys: list[tuple[int, bytes, bytes | None]] = []
        for hosted in self._touched:
            if not hosted.stateful:
                continue
            state, changed = hosted.changes()
            if state is not None:
                states.append((hosted.index, state))
            for key, value in changed:
                keys.append((hosted.index, key, value))
        runs = self._outgoing.encode(self._endpoint.me.index) if self._outgoing else []
        self._cells[Field.BUSY_HANDLER] = 0
        # failpoint: state-encoded
        return Prepared(runs, states, keys)

    def commit(self, prepared: Prepared, dead: Sequence[DeadLetter] = ()) -> None:
        """Durable when this returns. Raises JournalFull; who handled rolls back then."""
        if self._context.stop:
            # Before the append: a wish that is lost with a crash in between would never be repeated, while one that
            # comes too early only drains a little sooner.
            self._cells[Field.STOP_REQUESTED] = 1
            self._context.stop = False
        leaving, self._context.end = self._context.end, False
        # failpoint: transaction-prepared
        self._endpoint.commit(prepared.runs, prepared.states, prepared.keys, dead, self._removed)
        # failpoint: transaction-committed
        self.leaving |= leaving
        self._cells[Field.HANDLED] += self._handled
        for hosted in self._touched:
            if hosted.stateful:
                hosted.committed()
        self._clear()

    def _clear(self) -> None:
        self._cells[Field.BUSY_HANDLER] = 0
        self._touched.clear()
        self._outgoing.clear()
        self._endpoint.places.drop()
        if self._views.lent:
            self._views.take_back()
        self._removed = []
        self._handled = 0
        self.local.renew()

    def rollback(self) -> None:
        """As after the last commit. Handlers that took part are made anew from their committed state."""
        self._cells[Field.ROLLBACKS] += 1
        # failpoint: rollback-begun
        self._endpoint.rollback()
        touched = list(self._touched)
        self._context.stop = self._context.end = False
        self._clear()
        self._make(touched)
        self._forget_start(touched)

    # ------------------------------------------------------------------------------------------------ sources
    def run_source(self, hosted: Hosted, calls: int, until: float) -> tuple[Prepared, float | None]:
        """Up to so many calls of one `on_loop`, to be committed as one transaction, and what the last of them asked
        for. Whatever user code raises is raised here, rolled back."""
        outgoing = self._outgoing
        self._context.peer, self._context.local = "", False
        self._until = time.monotonic_ns() + BATCH_NS
        try:
            self._enter(hosted)
            while True:
                before = outgoing.sent
                pause: float | None = hosted.instance.on_loop()
                # failpoint: source-called
                silent = outgoing.sent == before
                if outgoing.local:
                    self._handled += self.local.drain(self._until)
                    self._enter(hosted)
                if pause is None and silent:
                    pause = LOOP_PAUSE
                calls -= 1
                if pause or calls <= 0 or outgoing.heavy or time.monotonic() >= until:
                    break
            return self.prepare(), pause
        except Exception:
            self.rollback()
            raise

    def commit_source(self, prepared: Prepared) -> None:
        """Raises JournalFull, rolled back."""
        try:
            self.commit(prepared)
        except JournalFull:
            self.rollback()
            raise
