"""What is committed to be sent to one peer: its numbers, its ids, its bytes, and the wait for room.

Contract
- `put` and its kin commit before they return, or change nothing. There is no await between the two.
- `size` is what is committed and not acknowledged, in bytes of stored runs; what is acknowledged counts until a
  further sixteenth of the limit is, or all. What was recovered is measured before anything is added.
- `allowance` is what may still be committed before senders must wait; 0 if they must, for whatever reason.
- Messages that are committed one by one reach the session together, when `settle` is called: by who publishes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from persist.ilm.backend import Change, Run
from persist.ilm.commits import Commits
from persist.ilm.errors import ContentsTooLarge, MessageIdNotNew, StorageFull
from persist.ilm.flight import FRAME_BYTES
from persist.ilm.identity import number as u64
from persist.ilm.identity import peer_key
from persist.ilm.message import MAX_ID, PeerId
from persist.ilm.session import Session
from persist.ilm.waiting import Crowd, Signal
from persist.ilm.wire import ENTRY_BYTES, HEADER_BYTES, MESSAGE_OVERHEAD, ONE_HEAD, RUN_HEAD, RUN_HEAD_BYTES, run_body
from persist.ilm.wire import contents as wire_contents

MARK_BYTES = 1 << 15


class Outbox:
    """Towards one peer. `offset` is the id of a message less its number; `publish` is set when there is something to
    do for the one who sends frames."""

    def __init__(
        self, session: Session, commits: Commits, offset: int, limit: int, recovered_from: int | None = None
    ) -> None:
        self.peer: PeerId = session.peer
        self.session = session
        self.commits = commits
        self.assigned = session.outbound.assigned
        self.offset = offset
        self.limit = limit
        self.largest = session.limits.frame - MESSAGE_OVERHEAD
        self.publish = Signal()
        self.room = Crowd(self._let_in)
        self.allowance = limit if recovered_from is None else 0
        self.is_blocked = False
        self._commit = commits.backend.commit
        self._recovered_from = recovered_from
        self._run_bytes = min(session.limits.frame, FRAME_BYTES) - HEADER_BYTES
        self._entered = self._gone = 0  # bytes, ever
        self._marks: deque[tuple[int, int]] = deque()  # (last number, bytes entered up to it)
        self._mark_bytes = min(MARK_BYTES, limit // 16)
        self._tail: list[Run] = []  # committed one by one, and not with the session yet; their ids are consecutive
        self._tail_bytes = 0
        self._tail_position = 0

    @property
    def size(self) -> int:
        return self._entered + self._tail_bytes - self._gone

    @property
    def pending(self) -> int:
        """Messages committed and not acknowledged."""
        return self.assigned - self.session.outbound.acked

    @property
    def last_id(self) -> int:
        return self.assigned + self.offset

    # --- committing

    def put(self, contents: bytes | bytearray | memoryview) -> int:
        """Commit one message; its id."""
        if type(contents) is not bytes:
            contents = as_bytes(contents)
        length = len(contents)
        if length > self.largest:
            raise ContentsTooLarge(length, self.largest)
        number = self.assigned + 1
        message_id = number + self.offset
        if message_id > MAX_ID:
            raise MessageIdNotNew(self.peer, message_id, message_id - 1)
        run = Run(number, 1, ONE_HEAD.pack(message_id, length) + contents)
        try:
            position = self._commit(Change(((self.peer, run),)))
        except StorageFull:
            raise
        except Exception as error:
            raise self.commits.failure(error) from error
        if self.commits.at_once:
            self._append(run, position)
        else:
            self.entered(run, position)
        return message_id

    def put_as(self, message_id: int, contents: bytes) -> None:
        """Commit one message under an id of the caller's."""
        contents = as_bytes(contents)
        self.check(contents)
        if not isinstance(message_id, int) or isinstance(message_id, bool) or message_id > MAX_ID:
            raise ValueError(f"{message_id!r} cannot be the id of a message: give an int from 1 to 2**64 - 1")
        if message_id <= self.last_id:
            raise MessageIdNotNew(self.peer, message_id, self.last_id)
        number = self.assigned + 1
        offset = message_id - number
        run = Run(number, 1, ONE_HEAD.pack(message_id, len(contents)) + contents)
        if offset == self.offset:
            position = self.commits.commit(Change(((self.peer, run),)))
        else:
            values = ((peer_key(self.peer, "offset"), u64(offset)),)
            position = self.commits.commit(Change(((self.peer, run),), values=values))
            self.settle()
            self.offset = offset
        if self.commits.at_once:
            self._append(run, position)
        else:
            self.entered(run, position)

    def put_many(self, contents: Sequence[bytes]) -> range:
        """Commit all of them, or none; their ids."""
        begin = self.last_id + 1
        runs = list(self.runs(contents))
        if runs:
            position = self.commits.commit(Change([(self.peer, run) for run in runs]))
            for run in runs:
                self.entered(run, position)
        return range(begin, begin + len(contents))

    def check(self, contents: bytes) -> None:
        """ContentsTooLarge, or TypeError for what is not bytes."""
        size = len(as_bytes(contents))
        if size > self.largest:
            raise ContentsTooLarge(size, self.largest)

    def runs(self, contents: Sequence[bytes]) -> Iterator[Run]:
        """What to commit for these, in runs that fit a frame; `entered` follows for each."""
        self.reckon()
        number = self.assigned + 1
        if self.last_id + len(contents) > MAX_ID:
            raise MessageIdNotNew(self.peer, self.last_id + len(contents), self.last_id)
        begin, size = 0, RUN_HEAD_BYTES
        for index, one in enumerate(contents):
            self.check(one)
            cost = ENTRY_BYTES + len(one)
            if index > begin and size + cost > self._run_bytes:
                yield self._run(number + begin, contents[begin:index])
                begin, size = index, RUN_HEAD_BYTES
            size += cost
        if begin < len(contents):
            yield self._run(number + begin, contents[begin:])

    def _run(self, first: int, contents: Sequence[bytes]) -> Run:
        return Run(first, len(contents), run_body(first + self.offset, contents))

    def entered(self, run: Run, position: int) -> None:
        """The run is committed: the next call for each, in order."""
        self.settle()
        self.assigned += run.count
        self._entered += len(run.body)
        self.allowance -= len(run.body)
        self._mark(self.assigned)
        if self.commits.at_once:
            self._released(run, position)
        else:
            self.commits.then(partial(self._released, run, position))

    def _released(self, run: Run, position: int) -> None:
        self.session.committed(run, position)
        self.publish.set()

    def _append(self, run: Run, position: int) -> None:
        """One message is committed, and may be published."""
        size = len(run.body)
        if not self._tail:
            self._tail_position = position
            self.publish.set()
        elif self._tail_bytes + size > self._run_bytes:
            self.settle()
            self._tail_position = position
        self._tail.append(run)
        self._tail_bytes += size
        self.assigned += 1
        self.allowance -= size

    def settle(self) -> None:
        """Hand over to the session what was committed one by one: as one run, which is read back as many."""
        tail = self._tail
        if not tail:
            return
        run = tail[0]
        if len(tail) > 1:
            body = b"".join([run.body, *[one.body[RUN_HEAD_BYTES:] for one in tail[1:]]])
            run = Run(run.first, len(tail), body)
        self._entered += self._tail_bytes
        self._tail, self._tail_bytes = [], 0
        self._mark(self.assigned)
        self.session.committed(run, self._tail_position)

    def unacknowledged(self) -> list[tuple[int, bytes]]:
        """Ids and contents of what is pending, read back. Nothing may be published any more."""
        self.settle()
        outbound = self.session.outbound
        outbound.rewind(outbound.acked)
        entry = outbound.peek()
        begin = outbound.spilled_from if entry is None else entry.position
        found: list[tuple[int, bytes]] = []
        for run in () if begin is None else self.commits.backend.runs(self.peer, outbound.acked, begin):
            (first_id,) = RUN_HEAD.unpack_from(run.body)
            several = wire_contents(run.body, RUN_HEAD_BYTES, run.count)
            known = max(0, outbound.acked + 1 - run.first)
            found += [(first_id + index, one) for index, one in enumerate(several) if index >= known]
        return found

    # --- room

    def reckon(self) -> None:
        """Renew the allowance."""
        if self._recovered_from is not None:
            self._measure(self._recovered_from)
        self.allowance = 0 if self.is_blocked else self.limit - self.size

    def block(self) -> None:
        """Let senders wait; those who wait look why."""
        self.is_blocked = True
        self.allowance = 0
        self.room.wake()

    def unblock(self) -> None:
        self.is_blocked = False
        self.reckon()
        self.room.wake()

    def acknowledged(self, through: int) -> None:
        """The session's acknowledged number has risen."""
        while self._marks and self._marks[0][0] <= through:
            self._gone = self._marks.popleft()[1]
        if through == self.assigned:
            self._marks.clear()
            self._gone = self._entered
            self._recovered_from = None
        if self._recovered_from is None:
            self.reckon()
            self._let_in()

    def _let_in(self) -> None:
        """One of those who wait, if there is room: who has taken some of it lets in the next."""
        if self.allowance > 0:
            self.room.wake_first()

    def _mark(self, last: int) -> None:
        if self._entered - (self._marks[-1][1] if self._marks else self._gone) >= self._mark_bytes:
            self._marks.append((last, self._entered))

    def _measure(self, begin: int) -> None:
        """Count what was recovered."""
        self._recovered_from = None
        outbound = self.session.outbound
        try:
            for run in self.commits.backend.runs(self.peer, outbound.acked, begin):
                self._entered += len(run.body)
                self._mark(run.last)
                if run.last >= self.assigned:
                    break
        except Exception as error:
            raise self.commits.failure(error) from error


def as_bytes(contents: object) -> bytes:
    """The same, not to be changed by anyone."""
    if isinstance(contents, (bytes, bytearray, memoryview)):
        return bytes(contents)
    raise TypeError(f"contents are bytes, not {type(contents).__name__}")
