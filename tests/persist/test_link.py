"""The two ends of a link, call by call."""

from __future__ import annotations

import pytest

from persist import DUPLICATE, NEW, UNKNOWN, UNLIMITED, Entry, Inbound, Kind, Outbound, OutboxMissing, ProtocolViolation
from persist.link import MARK_SPACING


class Committed:
    """An outbound end and the store of everything that was committed through it: `size` bytes per message."""

    def __init__(self, limit: int = UNLIMITED, spacing: int = 100) -> None:
        self.out = Outbound(limit)
        self.store: list[Entry] = []
        self.spacing = spacing

    def commit(self, *counts: int) -> None:
        for count in counts:
            first = self.out.assign(count)
            entry = Entry(first, count, 10 * count, f"run {first}", len(self.store) * self.spacing)
            self.store.append(entry)
            self.out.committed(entry.first, entry.count, entry.size, entry.payload, entry.position)

    def publish(self) -> list[int]:
        """All there is; the first number of each run."""
        numbers: list[int] = []
        while True:
            if self.out.needs_refill:
                self.refill()
            if self.out.peek() is None:
                return numbers
            numbers.append(self.out.pop().first)

    def refill(self) -> None:
        begin = self.out.spilled_from
        assert begin is not None
        self.out.refill(entry for entry in self.store if entry.position >= begin and entry.last > self.out.published)


def test_numbers_are_given_out_once_from_one() -> None:
    out = Outbound()
    assert [out.assign(count) for count in (1, 3, 2)] == [1, 2, 5]
    assert out.assigned == 6
    with pytest.raises(ValueError, match="at least one"):
        out.assign(0)


def test_numbers_of_a_transaction_that_is_rolled_back_are_given_out_again() -> None:
    link = Committed()
    link.commit(2)
    link.out.assign(5)
    link.out.rollback()
    assert link.out.assign(1) == 3


@pytest.mark.parametrize(("first", "count"), [(1, 1), (3, 1), (4, 1), (2, 0), (2, 2)])
def test_only_the_next_assigned_run_can_be_committed(first: int, count: int) -> None:
    out = Outbound()
    out.committed(out.assign(1), 1, 0, None, 0)
    out.assign(1)
    with pytest.raises(ValueError, match="does not follow"):
        out.committed(first, count, 0, None, 0)


def test_nothing_is_published_before_it_is_committed() -> None:
    out = Outbound()
    out.assign(3)
    assert out.peek() is None
    with pytest.raises(IndexError):
        out.pop()
    assert (out.backlog_messages, out.unacked) == (0, 0)


def test_committed_runs_are_published_in_order() -> None:
    link = Committed()
    link.commit(2, 1, 3)
    assert (link.out.backlog_messages, link.out.backlog_bytes, link.out.unacked) == (6, 60, 6)
    entry = link.out.peek()
    assert entry is not None
    assert (entry.first, entry.last, entry.payload, entry.position) == (1, 2, "run 1", 0)
    assert link.out.peek() is entry
    assert link.publish() == [1, 3, 4]
    assert (link.out.published, link.out.backlog_messages, link.out.backlog_bytes) == (6, 0, 0)
    assert link.out.unacked == 6


def test_backlog_over_the_limit_is_not_kept_in_memory() -> None:
    link = Committed(limit=50)
    link.commit(2, 2, 2, 1, 1)
    assert link.out.memory_bytes == 40
    assert link.out.spilled_from == link.store[2].position
    assert (link.out.backlog_messages, link.out.backlog_bytes) == (8, 80)
    link.out.pop()
    link.commit(1)
    assert link.out.memory_bytes == 20, "nothing is kept behind what was spilled, though there is room again"
    link.out.pop()
    assert link.out.peek() is None
    assert link.out.needs_refill
    link.refill()
    assert link.out.memory_bytes == 50
    assert link.publish() == [5, 7, 8, 9]
    assert (link.out.backlog_messages, link.out.backlog_bytes) == (0, 0)


def test_refill_stops_at_the_limit_and_goes_on_where_it_stopped() -> None:
    link = Committed(limit=35)
    link.commit(*[1] * 20)
    refills = []
    while link.out.peek() or link.out.needs_refill:
        if link.out.needs_refill:
            refills.append(link.out.spilled_from)
            link.refill()
            assert link.out.memory_bytes <= 35
        link.out.pop()
    assert refills == [300, 600, 900, 1200, 1500, 1800]
    assert link.out.published == 20


def test_run_over_the_limit_is_kept_alone() -> None:
    link = Committed(limit=5)
    link.commit(1, 4, 1)
    assert link.out.memory_bytes == 10
    assert link.publish() == [1, 2, 6]


def test_entries_of_one_frame_are_refilled_once_each() -> None:
    """Several runs of one transaction have one position; reading goes on from that position."""
    link = Committed(limit=20, spacing=0)
    link.commit(1, 1, 1, 1, 1)
    assert link.publish() == [1, 2, 3, 4, 5]


def test_refill_leaves_the_iterator_where_it_needs_no_more() -> None:
    link = Committed(limit=10)
    link.commit(1, 1)
    link.out.pop()
    entries = iter([*link.store, Entry(3, 1, 10, "not committed yet", 300)])
    link.out.refill(entries)
    assert next(entries).first == 3


def test_refill_in_portions_goes_on_from_the_last_entry() -> None:
    link = Committed(limit=1)
    link.commit(1, 1, 1)
    link.out.pop()
    link.out.refill(link.store[1:2])
    assert link.out.spilled_from == link.store[1].position
    assert link.publish() == [2, 3]


@pytest.mark.parametrize(
    ("entries", "got"), [([], 0), ([Entry(3, 1, 10, "", 200)], 3), ([Entry(2, 5, 10, "", 100)], 2)]
)
def test_hole_in_what_is_read_back_is_told(entries: list[Entry], got: int) -> None:
    link = Committed(limit=10)
    link.commit(1, 1, 1)
    link.out.pop()
    with pytest.raises(OutboxMissing) as missing:
        link.out.refill(entries)
    assert (missing.value.expected, missing.value.got) == (2, got)


def test_refill_that_is_not_needed_does_nothing() -> None:
    link = Committed()
    link.commit(1)
    link.out.refill(iter([Entry(1, 1, 10, "again", 0)]))
    assert link.publish() == [1]


def test_acknowledgement_counts_and_never_goes_back() -> None:
    link = Committed()
    link.commit(3, 3)
    link.publish()
    link.out.acknowledge(4)
    assert (link.out.acked, link.out.unacked) == (4, 2)
    for watermark in (0, 3, 4):
        link.out.acknowledge(watermark)
        assert link.out.acked == 4
    link.out.acknowledge(6)
    assert link.out.unacked == 0


@pytest.mark.parametrize("watermark", [2, 3, 4, 5, UNKNOWN])
def test_acknowledgement_of_what_was_never_published_is_a_violation(watermark: int) -> None:
    link = Committed()
    link.commit(1, 1, 1)
    link.out.assign(1)
    link.out.pop()
    with pytest.raises(ProtocolViolation) as violation:
        link.out.acknowledge(watermark)
    assert (violation.value.what, violation.value.value, violation.value.limit) == ("acknowledgement", watermark, 1)
    assert link.out.acked == 0


def test_poll_publishes_again_from_behind_what_the_receiver_has() -> None:
    link = Committed()
    link.commit(1, 1, 1, 1)
    link.publish()
    link.commit(1)
    link.out.rewind(2)
    assert link.out.needs_refill
    assert (link.out.published, link.out.backlog_messages, link.out.acked) == (2, 3, 0)
    assert link.publish() == [3, 4, 5]


@pytest.mark.parametrize("watermark", [0, 1, 2, UNKNOWN])
def test_poll_never_goes_behind_an_acknowledgement(watermark: int) -> None:
    link = Committed()
    link.commit(1, 1, 1, 1)
    link.publish()
    link.out.acknowledge(2)
    link.out.rewind(watermark)
    assert link.publish() == [3, 4]


def test_poll_is_no_acknowledgement() -> None:
    link = Committed()
    link.commit(1, 1, 1)
    link.publish()
    link.out.rewind(3)
    assert (link.out.acked, link.publish()) == (0, [])
    link.out.rewind(0)
    assert link.publish() == [1, 2, 3]


def test_poll_within_a_run_publishes_that_run_again() -> None:
    link = Committed()
    link.commit(4, 4, 4)
    link.publish()
    link.out.rewind(6)
    assert link.publish() == [5, 9]


def test_poll_above_what_was_published_is_a_violation() -> None:
    link = Committed()
    link.commit(1, 1)
    link.out.pop()
    with pytest.raises(ProtocolViolation) as violation:
        link.out.rewind(2)
    assert (violation.value.what, violation.value.value, violation.value.limit) == ("poll", 2, 1)


def test_poll_starts_reading_close_to_where_it_must() -> None:
    """Positions of published runs are remembered at some distance, and no longer than they can be asked for."""
    link = Committed(spacing=MARK_SPACING // 4)
    link.commit(*[1] * 100)
    link.publish()
    assert len(link.out._marks) == 25
    link.out.rewind(50)
    assert link.out.spilled_from is not None
    assert 0 <= link.store[50].position - link.out.spilled_from < MARK_SPACING
    assert link.publish() == list(range(51, 101))
    link.out.acknowledge(97)
    assert len(link.out._marks) == 1
    link.out.rewind(UNKNOWN)
    assert link.publish() == [98, 99, 100]
    link.out.acknowledge(100)
    assert not link.out._marks


def test_restored_outbox_is_not_in_memory() -> None:
    link = Committed()
    link.commit(2, 2, 2)
    out = Outbound()
    out.restore(6, 1, UNKNOWN, 0, size=60)
    link.out = out
    assert (out.assigned, out.published, out.acked, out.memory_bytes) == (6, 1, 1, 0)
    assert (out.backlog_messages, out.backlog_bytes, out.unacked) == (5, 60, 5)
    assert out.needs_refill
    assert out.spilled_from == 0
    assert out.peek() is None
    assert link.publish() == [1, 3, 5]
    assert out.assign(1) == 7


def test_restored_outbox_begins_behind_the_receivers_watermark() -> None:
    link = Committed()
    link.commit(2, 2, 2)
    link.out = Outbound()
    link.out.restore(6, 0, 2, 0)
    assert link.publish() == [3, 5]
    assert link.out.acked == 0, "where the receiver begins is a hint and trims nothing"


@pytest.mark.parametrize(("acked", "resume"), [(6, UNKNOWN), (6, 0), (0, 6), (3, 6)])
def test_restored_outbox_that_the_receiver_has_needs_no_refill(acked: int, resume: int) -> None:
    out = Outbound()
    out.restore(6, acked, resume, None if acked == 6 else 0)
    assert not out.needs_refill
    assert out.backlog_messages == out.backlog_bytes == 0
    out.committed(out.assign(1), 1, 10, "next", 500)
    entry = out.peek()
    assert entry is not None
    assert entry.first == 7


def test_what_a_former_incarnation_published_may_be_acknowledged() -> None:
    """The ring outlives the sender: the receiver goes on while the sender restarts, and what it has is passed over."""
    link = Committed(limit=20)
    link.commit(2, 2, 2)
    link.out = Outbound(limit=20)
    link.out.restore(6, 0, 0, 0)
    link.refill()
    link.out.acknowledge(3)
    assert (link.out.published, link.out.acked) == (3, 3)
    assert link.publish() == [3, 5]
    link.out = Outbound()
    link.out.restore(6, 0, 0, 0)
    link.out.acknowledge(6)
    assert not link.out.needs_refill
    assert link.publish() == []


def test_receiver_that_has_more_than_was_ever_assigned_is_a_violation() -> None:
    """The sender lost committed messages: it must not use their numbers again."""
    out = Outbound()
    with pytest.raises(ProtocolViolation) as violation:
        out.restore(6, 0, 7, 0)
    assert (violation.value.what, violation.value.value, violation.value.limit) == ("resume watermark", 7, 6)


def test_contradictory_recovery_is_refused() -> None:
    with pytest.raises(ValueError, match="only 2 were assigned"):
        Outbound().restore(2, 3, UNKNOWN, None)
    with pytest.raises(ValueError, match="have no position"):
        Outbound().restore(2, 1, UNKNOWN, None)


def test_next_run_is_new() -> None:
    end = Inbound()
    assert end.admit(1, 3) is NEW
    end.stage(3)
    assert end.admit(4, 1) is NEW
    assert (end.seen, end.watermark) == (3, 0)


def test_run_that_was_seen_is_a_duplicate() -> None:
    end = Inbound(5)
    for first, count in ((1, 5), (5, 1), (1, 1), (3, 3)):
        assert end.admit(first, count) is DUPLICATE


@pytest.mark.parametrize(("first", "count", "skip"), [(1, 6, 5), (5, 2, 1), (3, 9, 3)])
def test_watermark_may_lie_inside_a_run(first: int, count: int, skip: int) -> None:
    verdict = Inbound(5).admit(first, count)
    assert (verdict.kind, verdict.skip) == (Kind.NEW, skip)


def test_gap_says_what_is_missing() -> None:
    verdict = Inbound(5).admit(8, 2)
    assert (verdict.kind, verdict.expected, verdict.got) == (Kind.GAP, 6, 8)


@pytest.mark.parametrize(("first", "count", "value"), [(0, 1, 0), (-3, 9, -3), (6, 0, 0), (6, -1, -1), (1, 0, 0)])
def test_run_that_cannot_be_is_a_violation(first: int, count: int, value: int) -> None:
    with pytest.raises(ProtocolViolation) as violation:
        Inbound(5).admit(first, count)
    assert (violation.value.what, violation.value.value) == ("run", value)


def test_staged_is_durable_only_after_the_commit() -> None:
    end = Inbound(5)
    end.stage(7)
    end.rollback()
    assert (end.seen, end.watermark) == (5, 5)
    assert end.admit(6, 2) is NEW
    end.stage(7)
    end.commit()
    end.rollback()
    assert (end.seen, end.watermark) == (7, 7)
    with pytest.raises(ValueError, match="cannot go back"):
        end.stage(6)
