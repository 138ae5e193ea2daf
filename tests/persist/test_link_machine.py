"""One Outbound and one Inbound over a transport that loses, and a store each; both sides crash at any moment.

Whatever happens: what the receiver has committed is 1..watermark, once each and in order; the sender forgets nothing
that the receiver does not have; and when the transport stops losing, everything arrives.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from persist import DUPLICATE, UNKNOWN, Entry, Inbound, Kind, Outbound
from persist import link as link_module

RUNS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=4)

Record = tuple[int, int, list[int]]  # first, count, the messages: each is its own number


class Link(RuleBasedStateMachine):
    @initialize(limit=st.sampled_from([0, 1, 5, 20, 10**9]), spacing=st.sampled_from([1, 30, link_module.MARK_SPACING]))
    def begin(self, limit: int, spacing: int) -> None:
        link_module.MARK_SPACING = spacing
        self.limit = limit
        self.out = Outbound(limit)
        self.store: list[Entry] = []  # the sender's journal: survives
        self.position = 0
        self.recorded_ack = 0  # what the sender's last snapshot knew
        self.wire: list[Record] = []
        self.ack_cell = 0  # written by the receiver after each commit, survives like the wire
        self.resume_cell = UNKNOWN
        self.asked: int | None = None  # a poll under way
        self.inbound = Inbound()
        self.delivered: list[int] = []  # the receiver's journal: survives
        self.staged: list[int] = []

    def teardown(self) -> None:
        link_module.MARK_SPACING = 1 << 16
        if not hasattr(self, "out"):
            return
        self.rollback()
        for _ in range(3):
            self.send_poll()
            self.hear_poll()
            while self.out.backlog_messages:
                self.publish(1000)
            while self.wire:
                self.receive(1000)
                self.commit_received()
            self.see_acknowledgement()
        assert self.delivered == list(range(1, self.out.last_committed + 1))
        assert self.out.unacked == 0
        assert self.out.backlog_bytes == 0
        assert not self.out.needs_refill

    @rule(
        runs=st.just([]) | RUNS,
        same=st.booleans(),
        publish=st.integers(0, 9),
        receive=st.lists(st.integers(1, 9), max_size=9),
        commit=st.booleans(),
        see=st.booleans(),
        poll=st.booleans(),
    )
    def traffic(
        self,
        runs: list[tuple[int, int]],
        same: bool,
        publish: int,
        receive: list[int],
        commit: bool,
        see: bool,
        poll: bool,
    ) -> None:
        """What goes on when nothing goes wrong; each step may also come alone."""
        self.commit(runs, same)
        self.publish(publish)
        for most in receive:
            if self.wire:
                self.receive(most)
        if commit:
            self.commit_received()
        if see:
            self.see_acknowledgement()
        if poll:
            self.send_poll()
            self.hear_poll()

    # the sender

    @rule(runs=RUNS, same=st.booleans())
    def commit(self, runs: list[tuple[int, int]], same: bool) -> None:
        """One or more runs, of one transaction (the same position) or of several, after one that is rolled back."""
        self.out.assign(len(runs) + 1)
        self.out.rollback()
        made: list[Entry] = []
        for count, size in runs:
            first = self.out.assign(count)
            made.append(Entry(first, count, size, list(range(first, first + count)), self.position))
            if not same:
                self.position += 16
        self.position += 16
        self.store += made
        for entry in made:
            self.out.committed(entry.first, entry.count, entry.size, entry.payload, entry.position)

    @rule(most=st.integers(1, 6))
    def publish(self, most: int) -> None:
        for _ in range(most):
            if self.out.needs_refill:
                begin = self.out.spilled_from
                assert begin is not None
                self.out.refill(entry for entry in self.store if entry.position >= begin)
                assert self.out.peek() is not None
            entry = self.out.peek()
            if entry is None:
                assert self.out.published == self.out.last_committed
                return
            assert entry.first <= self.out.published + 1 <= entry.last
            assert self.out.pop() is entry
            self.wire.append((entry.first, entry.count, entry.payload))

    @rule()
    def see_acknowledgement(self) -> None:
        self.out.acknowledge(self.ack_cell)
        assert self.out.acked == self.ack_cell

    @rule(back=st.integers(0, 30))
    def snapshot(self, back: int) -> None:
        """Knows what is acknowledged now; an older acknowledgement that comes late changes nothing."""
        acked = self.out.acked
        self.out.acknowledge(max(0, acked - back))
        assert self.out.acked == acked
        self.recorded_ack = acked

    @rule()
    def hear_poll(self) -> None:
        if self.asked is not None:
            self.out.rewind(self.asked)
            self.asked = None

    @rule(lost_hint=st.booleans())
    def sender_crashes(self, lost_hint: bool) -> None:
        acked = self.recorded_ack
        first = next((entry.position for entry in self.store if entry.last > acked), None)
        assigned = self.store[-1].last if self.store else 0
        self.out = Outbound(self.limit)
        self.out.restore(assigned, acked, UNKNOWN if lost_hint else self.resume_cell, first)
        assert self.out.memory_bytes == 0
        hint = 0 if lost_hint or self.resume_cell == UNKNOWN else self.resume_cell
        assert self.out.published == max(acked, hint)
        assert self.out.needs_refill == (self.out.published < assigned)

    # the transport

    @precondition(lambda self: self.wire)
    @rule(at=st.integers(0, 30), most=st.integers(1, 30))
    def lose(self, at: int, most: int) -> None:
        at %= len(self.wire)
        del self.wire[at : at + most]

    @precondition(lambda self: self.wire)
    @rule(at=st.integers(0, 30), to=st.integers(0, 30))
    def double(self, at: int, to: int) -> None:
        self.wire.insert(to % len(self.wire), self.wire[at % len(self.wire)])

    # the receiver

    @precondition(lambda self: self.wire)
    @rule(most=st.integers(1, 9))
    def receive(self, most: int) -> None:
        """Handle up to so many messages of the next record; the rest of it is looked at again, as a ring does."""
        first, count, messages = self.wire[0]
        verdict = self.inbound.admit(first, count)
        if verdict is DUPLICATE:
            self.wire.pop(0)
        elif verdict.kind is Kind.GAP:
            assert (verdict.expected, verdict.got) == (self.inbound.seen + 1, first)
            self.wire.pop(0)
            self.send_poll()
        else:
            taken = messages[verdict.skip : verdict.skip + most]
            self.staged += taken
            self.inbound.stage(taken[-1])
            if taken[-1] == messages[-1]:
                self.wire.pop(0)

    @rule()
    def commit_received(self) -> None:
        self.inbound.commit()
        self.delivered += self.staged
        self.staged.clear()
        self.ack_cell = self.inbound.watermark

    @rule()
    def rollback(self) -> None:
        """What was taken from the wire in this transaction is gone from it: a poll brings it back."""
        self.inbound.rollback()
        self.staged.clear()

    @rule()
    def send_poll(self) -> None:
        self.asked = self.inbound.watermark

    @rule()
    def receiver_crashes(self) -> None:
        self.staged.clear()
        self.inbound = Inbound(len(self.delivered))
        self.resume_cell = self.inbound.watermark

    # what must hold

    @invariant()
    def exactly_once_and_in_order(self) -> None:
        if hasattr(self, "out"):
            assert self.delivered + self.staged == list(range(1, self.inbound.seen + 1))
            assert len(self.delivered) == self.inbound.watermark

    @invariant()
    def nothing_is_forgotten(self) -> None:
        if hasattr(self, "out"):
            assert self.out.acked <= len(self.delivered)
            assert self.out.acked <= self.out.published <= self.out.last_committed == self.out.assigned
            assert self.out.unacked == self.out.last_committed - self.out.acked

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "out"):
            sizes = [entry.size for entry in self.out._queue]
            assert self.out.memory_bytes == sum(sizes)
            assert len(sizes) <= 1 or sum(sizes) <= self.limit
            assert self.out.backlog_bytes >= self.out.memory_bytes


Link.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLink = pytest.mark.timeout(600)(Link.TestCase)  # a failure takes long to shrink
