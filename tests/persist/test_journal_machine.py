"""A journal against a list: append, rotate, trim, read back, and crashes that tear any number of bytes off the end."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from persist import Journal, Recovered, Send, Snapshot, Transaction, check, read, snapshot_of
from tests.persist.building import ROUTES, path_of

PEERS = ["a", "b", "c"]
RUNS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 90)), max_size=3)


@dataclass
class Committed:
    """One transaction of the reference."""

    position: int
    end: int
    state: bytes
    sends: list[tuple[int, int, int, bytes]] = field(default_factory=list)  # peer, first, count, body


@dataclass
class Part:
    """One segment of the reference; `acked` and `state` are those of its snapshot."""

    number: int
    begin: int
    body: int
    acked: dict[int, int]
    state: bytes
    records: list[Committed] = field(default_factory=list)


class JournalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.journal: Journal | None = None

    @initialize(segment_bytes=st.sampled_from([100, 600, 5000]))
    def begin(self, segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.parts: list[Part] = []
        self.acked = dict.fromkeys(range(3), 0)
        self.epoch = 0
        self.open(None)

    def teardown(self) -> None:
        if self.journal is not None:
            self.journal.close()
        shutil.rmtree(self.directory)

    # the reference

    @property
    def assigned(self) -> dict[int, int]:
        last = dict(self.gone)
        for part in self.parts:
            for record in part.records:
                for peer, first, count, _ in record.sends:
                    last[peer] = first + count - 1
        return last

    @property
    def state(self) -> bytes:
        part = self.parts[-1]
        return part.records[-1].state if part.records else part.state

    gone: dict[int, int] = {0: 0, 1: 0, 2: 0}  # assigned by segments that were trimmed

    def sends(self, peer: int, after: int, position: int = 0) -> list[tuple[int, int, int, bytes]]:
        return [
            (record.position, first, count, body)
            for part in self.parts
            for record in part.records
            for to, first, count, body in record.sends
            if to == peer and first + count - 1 > after and record.position >= position
        ]

    # steps

    def snapshot(self) -> Snapshot:
        return Snapshot(
            "process",
            "f",
            PEERS,
            ["h"],
            list(ROUTES),
            assigned=[(peer, last) for peer, last in self.assigned.items() if last],
            acked=list(self.acked.items()),
            states=[(0, self.state)],
        )

    def open(self, torn: int | None) -> None:
        """`torn`: how many bytes a crash left behind the last whole frame."""
        before = self.parts[-1] if self.parts else None
        if before is not None:
            report = check(self.directory)
            assert report.ok, report
            assert (report.torn.bytes_dropped if report.torn else None) == torn
        self.journal, recovered = Journal.open(
            self.directory,
            epoch=0,
            level="process",
            segment_bytes=self.segment_bytes,
            make_snapshot=self.first_snapshot,
        )
        self.epoch += 1
        assert self.journal.epoch == self.epoch == recovered.epoch + 1
        assert (recovered.torn.bytes_dropped if recovered.torn else None) == torn
        if before is None:
            state, begin = b"", 0
        else:
            state, begin = self.state, before.records[-1].end if before.records else before.body
            assert recovered.states == ({"h": state} if state else {})
            for index, name in enumerate(PEERS):
                known = max(before.acked.get(index, 0), self.gone[index])  # what was trimmed was acknowledged
                pending = self.sends(index, known)
                assert recovered.assigned.get(name, 0) == self.assigned[index]
                assert self.found_acked.get(name, 0) == known
                found = recovered.unacked_from.get(name)
                assert (found is None) == (not pending)
                if found is not None:
                    # A segment of which nothing is acknowledged counts from its beginning.
                    first = pending[0][0]
                    assert max(part.body for part in self.parts if part.body <= first) <= found <= first
                assert (recovered.unacked_bytes.get(name, 0) > 0) == any(body for *_, body in pending)
        assert recovered.position == begin
        number = before.number + 1 if before else 1
        self.parts.append(Part(number, begin, self.journal.position, dict(self.acked), state))

    def first_snapshot(self, recovered: Recovered | None, epoch: int) -> Snapshot:
        assert (recovered is None) == (not self.parts)
        recovered = recovered or Recovered()
        self.found_acked = recovered.acked
        recovered.acked = {PEERS[peer]: last for peer, last in self.acked.items()}
        return snapshot_of(recovered, level="process", fingerprint="f", peers=PEERS, handlers=["h"], routes=ROUTES)

    @rule(transactions=st.lists(st.tuples(RUNS, st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
    def append(self, transactions: list[tuple[list[tuple[int, int, int]], bytes]]) -> None:
        assert self.journal is not None
        for runs, state in transactions:
            last = self.assigned
            record = Committed(self.journal.position, 0, state)
            for peer, count, size in runs:
                record.sends.append((peer, last[peer] + 1, count, bytes([peer]) * size))
                last[peer] += count
            sends = [Send(0, count, 0, [(peer, first)], body) for peer, first, count, body in record.sends]
            assert self.journal.append(Transaction(sends=sends, states=[(0, state)])) == record.position
            record.end = self.journal.position
            self.parts[-1].records.append(record)

    @rule()
    def rotate(self) -> None:
        assert self.journal is not None
        begin, state = self.journal.position, self.state
        self.journal.rotate(self.snapshot() if state else self.stateless())
        number = self.parts[-1].number + 1
        self.parts.append(Part(number, begin, self.journal.position, dict(self.acked), state))

    def stateless(self) -> Snapshot:
        made = self.snapshot()
        made.states = []
        return made

    @rule(more=st.tuples(*[st.integers(0, 9)] * 3), trim=st.booleans())
    def acknowledge(self, more: tuple[int, int, int], trim: bool) -> None:
        for peer, last in self.assigned.items():
            self.acked[peer] = min(self.acked[peer] + more[peer], last)
        if trim:
            self.trim()

    def trim(self) -> None:
        assert self.journal is not None
        count = 0
        for part in self.parts[:-1]:
            ends = {peer: first + n - 1 for record in part.records for peer, first, n, _ in record.sends}
            if any(last > self.acked[peer] for peer, last in ends.items()):
                break
            count += 1
            self.gone = self.gone | ends
        assert self.journal.trim(self.acked) == count
        del self.parts[:count]

    @rule(peer=st.integers(0, 2), data=st.data())
    def read_back(self, peer: int, data: st.DataObject) -> None:
        assert self.journal is not None
        after = data.draw(st.integers(self.acked[peer], self.assigned[peer]))
        wanted = self.sends(peer, after)
        positions = [0] + [record.position for part in self.parts for record in part.records]
        low = [position for position in positions if not wanted or position <= wanted[0][0]]
        begin = data.draw(st.sampled_from(low))
        found = [
            (position, send.edges[0][1], send.count, bytes(send.body))
            for position, send in self.journal.sends(peer, after, begin)
        ]
        assert found == self.sends(peer, after, begin)

    @rule(data=st.data(), garbage=st.sampled_from([b"", b"", bytes(20), b"\x02\0\0\0" * 9, b"x"]))
    def crash(self, data: st.DataObject, garbage: bytes) -> None:
        """The process dies; the disk keeps all but the last bytes, and perhaps something else in their place."""
        assert self.journal is not None
        self.journal.close()
        part = self.parts[-1]
        path = path_of(self.directory, part.number)
        content = path.read_bytes()
        to_lose = part.number == 1 or len(self.parts) > 1  # the head may be torn where there is something before it
        least = 0 if to_lose else part.body - part.begin + 32
        size = data.draw(st.one_of(st.just(len(content)), st.integers(least, len(content))))
        if size < part.body - part.begin + 32 and garbage.strip(b"\0"):
            garbage = b""  # a header followed by anything else is not what a crash leaves
        if garbage.strip(b"\0"):
            size -= size % 8  # padding is not looked at
        left = content[:size] + garbage
        path.write_bytes(left)
        size = next(
            (n for n, (a, b) in enumerate(zip(content, left, strict=False)) if a != b), min(len(content), len(left))
        )
        head = size < part.body - part.begin + 32
        if head:
            self.parts.pop()
            torn = len(left)
            if not self.parts:
                self.epoch = 0
        else:
            part.records = [record for record in part.records if record.end - part.begin + 32 <= size]
            end = part.records[-1].end if part.records else part.body
            torn = len(left) - (end - part.begin + 32)
            if not any(left[len(left) - torn :]):
                torn = 0  # no more than space that was reserved
        self.epoch = self.epoch if not self.parts else read(self.directory).epoch
        self.acked = {peer: min(last, self.assigned[peer]) for peer, last in self.acked.items()}
        self.open(torn or (0 if head else None))

    # what must hold

    @invariant()
    def files_are_those_of_the_reference(self) -> None:
        if self.journal is not None:
            files = sorted(self.directory.glob("*.journal"))
            assert files == [path_of(self.directory, part.number) for part in self.parts]
            assert self.journal.segments == len(files)
            *sizes, last = [file.stat().st_size for file in files]
            assert sum(sizes) < self.journal.bytes <= sum(sizes) + last
            written = self.journal.position - self.parts[-1].body
            snapshot = self.parts[-1].body - self.parts[-1].begin
            assert self.journal.due == (written > max(self.segment_bytes, 2 * snapshot))


JournalMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestJournal = pytest.mark.timeout(600)(JournalMachine.TestCase)  # a failure takes long to shrink
