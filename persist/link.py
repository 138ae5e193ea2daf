"""The ILM protocol of one directed link, sans-IO: what to publish next, what is new, what may be forgotten.

Contract
- Sequence numbers start at 1 and have no holes. A run is `count` consecutive numbers from `first`.
- An Outbound publishes a run only after the caller says it is committed, and forgets it only when the receiver's
  durable watermark (an acknowledgement) has passed it. Nothing else trims: neither what was published nor polls.
- What is committed and not yet published is kept in memory up to a limit. The rest stays where the caller committed
  it: only the position of its first entry is kept, and it is read back, forward and in order, by `refill`.
- What has been published is not kept in memory. Publishing it again (`rewind`, `restore`) reads it back too.
- An Inbound admits each number once and in order. `stage` is provisional until `commit`.
- Every call costs per run, not per message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any

from msgspec import Struct

from persist.errors import OutboxMissing, ProtocolViolation

UNKNOWN = 2**64 - 1  # a watermark that is not known (yet)
UNLIMITED = 2**63 - 1
MARK_SPACING = 1 << 16  # positions of published entries are remembered at least this far apart


class Entry(Struct, frozen=True):
    """One committed run. `position` is where the caller can read it again."""

    first: int
    count: int
    size: int
    payload: Any
    position: int

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class Kind(Enum):
    NEW = "new"
    DUPLICATE = "duplicate"
    GAP = "gap"


class Verdict(Struct, frozen=True):
    """NEW: handle the run but for its first `skip` messages. GAP: `expected` is missing, `got` came instead."""

    kind: Kind
    skip: int = 0
    expected: int = 0
    got: int = 0


NEW = Verdict(Kind.NEW)  # the whole run is new: always this very object, so that a hot loop can test identity
DUPLICATE = Verdict(Kind.DUPLICATE)  # always this very object


class Outbound:
    """The sending end.

    assigned       last number given out (may belong to a transaction that is not committed yet)
    last_committed last number committed
    published      last number given to the transport; goes back on a rewind
    acked          the receiver's durable watermark as far as known
    memory_bytes   size of the entries held in memory
    spilled_from   position from which the backlog must be read back, None if all of it is in memory
    """

    __slots__ = (
        "_marks",
        "_queue",
        "_reached",
        "_spilled_bytes",
        "acked",
        "assigned",
        "last_committed",
        "limit",
        "memory_bytes",
        "published",
        "spilled_from",
    )

    def __init__(self, limit: int = UNLIMITED) -> None:
        self.limit = limit
        self.assigned = 0
        self.last_committed = 0
        self.published = 0
        self.acked = 0
        self.memory_bytes = 0
        self.spilled_from: int | None = None
        self._spilled_bytes = 0
        self._reached = 0  # the highest number any incarnation may have published
        self._queue: deque[Entry] = deque()
        # (first, position): everything from `first` on lies at or behind `position`. Holds while anything published is
        # unacknowledged; its first element then covers the first unacknowledged number.
        self._marks: deque[tuple[int, int]] = deque()

    def restore(self, assigned: int, acked: int, resume: int, from_position: int | None, size: int = 0) -> None:
        """Begin where a recovered journal ends. `resume` is the receiver's watermark at its start, or UNKNOWN.

        Nothing is loaded: `needs_refill` says whether there is a backlog, which lies at or behind `from_position` and
        has `size` bytes as far as known. A receiver that has more than was ever assigned is a ProtocolViolation: this
        end has lost committed messages and would reuse their numbers.
        """
        if acked > assigned:
            raise ValueError(f"acknowledged up to {acked}, but only {assigned} were assigned")
        if resume == UNKNOWN:
            resume = acked
        elif resume > assigned:
            raise ProtocolViolation("resume watermark", resume, assigned)
        if from_position is None and acked < assigned:
            raise ValueError(f"{acked + 1} to {assigned} are unacknowledged and have no position")
        self.assigned = self.last_committed = self._reached = assigned
        self.acked = acked
        self.published = max(acked, resume)
        self.memory_bytes = 0
        self._queue.clear()
        self._marks.clear()
        if from_position is not None and acked < assigned:
            self._marks.append((acked + 1, from_position))
        behind = self.published < assigned
        self.spilled_from = from_position if behind else None
        self._spilled_bytes = size if behind else 0

    def assign(self, count: int) -> int:
        """Give out `count` numbers and return the first of them."""
        if count < 1:
            raise ValueError(f"a run has at least one message, not {count}")
        first = self.assigned + 1
        self.assigned += count
        return first

    def rollback(self) -> None:
        """The transaction will not be committed: its numbers are free again."""
        self.assigned = self.last_committed

    def committed(self, first: int, count: int, size: int, payload: Any, position: int) -> None:
        """The run is committed at `position` and may be published."""
        last = first + count - 1
        if first != self.last_committed + 1 or count < 1 or last > self.assigned:
            raise ValueError(
                f"run {first}..{last} does not follow {self.last_committed} within the assigned {self.assigned}"
            )
        self.last_committed = last
        if self.spilled_from is None:
            if not self._queue or self.memory_bytes + size <= self.limit:
                self._queue.append(Entry(first, count, size, payload, position))
                self.memory_bytes += size
                return
            self.spilled_from = position
            # failpoint: backlog-spilled
        self._spilled_bytes += size

    def passed(self, first: int, count: int, position: int) -> None:
        """The run is committed at `position`. Nothing waited before it, so it was given to the transport at once: as by
        `committed` and `pop`."""
        last = first + count - 1
        if first != self.last_committed + 1 or count < 1 or last > self.assigned or self.published != first - 1:
            raise ValueError(
                f"run {first}..{last} does not follow {self.last_committed} within the assigned {self.assigned}, "
                f"with all up to {self.published} published"
            )
        self.last_committed = self.published = last
        self._reached = max(self._reached, last)
        if not self._marks or position - self._marks[-1][1] >= MARK_SPACING:
            self._marks.append((first, position))

    def peek(self) -> Entry | None:
        """What to publish next; None if there is nothing or if it must be refilled first."""
        return self._queue[0] if self._queue else None

    def pop(self) -> Entry:
        """The entry that `peek` showed has been given to the transport."""
        entry = self._queue.popleft()
        self.memory_bytes -= entry.size
        self.published = last = entry.first + entry.count - 1
        self._reached = max(self._reached, last)
        if not self._marks or entry.position - self._marks[-1][1] >= MARK_SPACING:
            self._marks.append((entry.first, entry.position))
        return entry

    @property
    def needs_refill(self) -> bool:
        """Memory is empty and the backlog is not: call `refill` with what was committed behind `published`, read from
        `spilled_from`."""
        return self.spilled_from is not None and not self._queue

    def refill(self, entries: Iterable[Entry]) -> None:
        """Take in entries, oldest first, until memory is full or the backlog is complete. Those at or below
        `published` are passed over; a hole is OutboxMissing; the iterator is left as soon as nothing more is needed."""
        if not self.needs_refill:
            return
        wanted = self.published + 1
        for entry in entries:
            last = entry.last
            if last < wanted:
                continue
            if entry.first > wanted or last > self.last_committed:
                raise OutboxMissing(wanted, entry.first)
            self.spilled_from = entry.position
            if self._queue and self.memory_bytes + entry.size > self.limit:
                return
            self._queue.append(entry)
            self.memory_bytes += entry.size
            self._spilled_bytes = max(0, self._spilled_bytes - entry.size)
            wanted = last + 1
            if last == self.last_committed:
                self.spilled_from = None
                self._spilled_bytes = 0
                return
        if not self._queue:
            raise OutboxMissing(wanted, 0)

    @property
    def backlog_messages(self) -> int:
        """Committed and not published."""
        return self.last_committed - self.published

    @property
    def backlog_bytes(self) -> int:
        """The size of the backlog. What must be published again counts from when it has been read back."""
        return self.memory_bytes + self._spilled_bytes

    @property
    def unacked(self) -> int:
        """Committed and not acknowledged, in messages."""
        return self.last_committed - self.acked

    def acknowledge(self, watermark: int) -> None:
        """The receiver's durable watermark. Going backwards is ignored; passing what any incarnation may have
        published is a ProtocolViolation."""
        if watermark <= self.acked:
            return
        if watermark > self._reached:
            raise ProtocolViolation("acknowledgement", watermark, self._reached)
        self.acked = watermark
        if watermark > self.published:
            self._skip_to(watermark)
        if watermark == self._reached:
            self._marks.clear()
        else:
            while len(self._marks) > 1 and self._marks[1][0] <= watermark + 1:
                self._marks.popleft()

    def rewind(self, watermark: int) -> None:
        """The receiver's poll: it has everything up to `watermark` (or UNKNOWN). Publish again from behind it."""
        if watermark == UNKNOWN:
            watermark = self.acked
        elif watermark > self._reached:
            raise ProtocolViolation("poll", watermark, self._reached)
        target = max(self.acked, watermark)
        if target >= self.published:
            self._skip_to(target)
            return
        self._spilled_bytes += self.memory_bytes
        self.memory_bytes = 0
        self._queue.clear()
        while len(self._marks) > 1 and self._marks[-1][0] > target + 1:
            self._marks.pop()
        self.spilled_from = self._marks[-1][1]
        self.published = target

    def _skip_to(self, watermark: int) -> None:
        """The receiver already has what would be published next: an earlier incarnation published it."""
        self.published = watermark
        while self._queue and self._queue[0].last <= watermark:
            self.memory_bytes -= self._queue.popleft().size
        if watermark == self.last_committed:
            self.spilled_from = None
            self._spilled_bytes = 0


class Inbound:
    """The receiving end: `watermark` is durable, `seen` runs ahead of it until the commit."""

    __slots__ = ("seen", "watermark")

    def __init__(self, watermark: int = 0) -> None:
        self.watermark = watermark
        self.seen = watermark

    def admit(self, first: int, count: int) -> Verdict:
        """What the run is. Changes nothing; `stage` follows once its messages have been handled."""
        seen = self.seen
        if first == seen + 1 and count > 0:
            return NEW
        if first < 1 or count < 1:
            raise ProtocolViolation("run", first if first < 1 else count, 1)
        if first > seen + 1:
            return Verdict(Kind.GAP, expected=seen + 1, got=first)
        if first + count - 1 <= seen:
            return DUPLICATE
        return Verdict(Kind.NEW, skip=seen + 1 - first)

    def stage(self, last: int) -> None:
        """Everything up to `last` has been handled within the current transaction."""
        if last < self.seen:
            raise ValueError(f"staged up to {self.seen}, cannot go back to {last}")
        self.seen = last

    def commit(self) -> None:
        """The transaction is durable."""
        self.watermark = self.seen

    def rollback(self) -> None:
        """The transaction will not be: what it consumed is new again."""
        self.seen = self.watermark
