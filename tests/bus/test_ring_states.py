"""The ring against a list: whatever is done in whatever order, what comes out is what went in."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bus import Cell, RecordTooLarge
from bus.layout import framed
from bus.ring import MOST_RESERVED
from tests.bus.implementations import RINGS, needs_c, new_ring

CAPACITY = 4096
LIMIT = CAPACITY // 2 - 8
EXAMPLES = 60
MANY_EXAMPLES = 2000
STEPS = 50

sizes = st.one_of(st.integers(0, 40), st.integers(0, LIMIT), st.integers(LIMIT - 8, LIMIT))
budgets = st.one_of(st.integers(0, 5000), st.just(2**62))


class RingMachine(RuleBasedStateMachine):
    """Model: all records ever made visible, and two indices into them. A small ring wraps and fills."""

    producer = "python"
    consumer = "python"

    @initialize()
    def attach(self) -> None:
        self.buffer = new_ring(CAPACITY)
        self.out = RINGS[self.producer](self.buffer)
        self.into = RINGS[self.consumer](self.buffer)
        self.visible: list[bytes] = []
        self.released = 0
        self.taken = 0
        self.reserved: list[tuple[Any, bytes]] = []
        self.serial = 0
        self.cells: dict[int, int] = {}

    def record(self, size: int) -> bytes:
        self.serial += 1
        return (self.serial.to_bytes(4, "little") * (size // 4 + 1))[:size]

    def no_room_for(self, size: int) -> None:
        """Only what is missing may be refused: the record itself, and the padding if it does not fit before the end."""
        tail = self.out.get(Cell.TAIL)
        end = tail
        for length in (*(len(record) for _, record in self.reserved), size):
            left = CAPACITY - end % CAPACITY
            end += framed(length) + (left if left < framed(length) else 0)
        assert self.out.used() + end - tail > CAPACITY, f"no room for {size}"

    no_reservation = precondition(lambda self: not self.reserved)
    reservation = precondition(lambda self: self.reserved)

    @no_reservation
    @rule(parts=st.lists(sizes, max_size=3), kind=st.sampled_from([bytes, bytearray, memoryview]))
    def push(self, parts: list[int], kind: Any) -> None:
        record = self.record(sum(parts))
        cuts = [sum(parts[:n]) for n in range(len(parts) + 1)]
        pieces = [kind(record[a:b]) for a, b in itertools.pairwise(cuts)]
        if len(record) > LIMIT:
            try:
                self.out.push(*pieces)
            except RecordTooLarge:
                return
            raise AssertionError("too large, but taken")
        if self.out.push(*pieces):
            self.visible.append(record)
        else:
            self.no_room_for(len(record))

    @no_reservation
    @rule(lengths=st.lists(sizes, max_size=12))
    def push_many(self, lengths: list[int]) -> None:
        records = [self.record(size) for size in lengths]
        pushed = self.out.push_many(records)
        self.visible += records[:pushed]
        if pushed < len(records):
            self.no_room_for(lengths[pushed])

    @rule(size=sizes)
    def reserve(self, size: int) -> None:
        view = self.out.reserve(size)
        if view is not None:
            assert len(view) == size
            self.reserved.append((view, self.record(size)))
            view[:] = self.reserved[-1][1]
        elif len(self.reserved) < MOST_RESERVED:
            self.no_room_for(size)

    @reservation
    @rule()
    def commit(self) -> None:
        _, record = self.reserved.pop(0)
        self.out.commit()
        self.visible.append(record)

    @reservation
    @rule()
    def abandon(self) -> None:
        self.reserved.pop()
        self.out.abandon()

    @rule(max_records=st.integers(0, 20), max_bytes=budgets)
    def take_many(self, max_records: int, max_bytes: int) -> None:
        expected: list[bytes] = []
        for record in self.visible[self.taken : self.taken + max_records]:
            if expected and sum(map(len, expected)) + len(record) > max_bytes:
                break
            expected.append(record)
        assert self.into.take_many(max_records, max_bytes) == expected
        self.taken += len(expected)

    @rule()
    def release(self) -> None:
        self.into.release()
        self.released = self.taken

    @rule()
    def rewind(self) -> None:
        self.into.rewind()
        self.taken = self.released

    @rule(close=st.booleans())
    def producer_is_replaced(self, close: bool) -> None:
        if close:
            self.out.close()
        self.out = RINGS[self.producer](self.buffer)
        self.reserved = []

    @rule(close=st.booleans())
    def consumer_is_replaced(self, close: bool) -> None:
        if close:
            self.into.close()
        self.into = RINGS[self.consumer](self.buffer)
        self.taken = self.released

    @rule(cell=st.sampled_from([c for c in Cell if c not in {Cell.TAIL, Cell.HEAD}]), value=st.integers(0, 2**64 - 1))
    def set_cell(self, cell: int, value: int) -> None:
        (self.out if cell < Cell.HEAD else self.into).set(cell, value)
        self.cells[cell] = value

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "into"):
            return
        pending = sum(framed(len(record)) for record in self.visible[self.taken :])
        used = sum(framed(len(record)) for record in self.visible[self.released :])
        assert pending <= self.into.pending() <= CAPACITY
        assert used <= self.into.used() == self.out.used() <= CAPACITY
        assert pending or self.into.pending() == 0
        assert all(self.into.get(cell) == self.out.get(cell) == value for cell, value in self.cells.items())

    def teardown(self) -> None:
        if hasattr(self, "into"):
            self.into.rewind()
            assert self.into.take_many(2**62, 2**62) == self.visible[self.released :]
            self.out.close()
            self.into.close()
            self.buffer.append(0)  # BufferError if anything were still exported


def machine(producer: str, consumer: str, examples: int = EXAMPLES) -> Any:
    cls: Any = type(f"{producer}_to_{consumer}", (RingMachine,), {"producer": producer, "consumer": consumer})
    case = cls.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
    )
    patient = pytest.mark.timeout(1800)  # to find a failure takes seconds, to shrink it minutes
    return patient(case if {producer, consumer} == {"python"} else needs_c(case))


TestPythonToPython = machine("python", "python")
TestCToC = machine("c", "c")
TestPythonToC = machine("python", "c")
TestCToPython = machine("c", "python")

TestManyPythonToPython = pytest.mark.long(machine("python", "python", MANY_EXAMPLES))
TestManyCToC = pytest.mark.long(machine("c", "c", MANY_EXAMPLES))
