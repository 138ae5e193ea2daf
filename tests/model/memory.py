"""Simulated shared memory: the real rings, board and doorbells over byte arrays, with a step before every store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bus import Block, Board, Cell, Field, PyDoorbell, PyRing

if TYPE_CHECKING:
    from tests.model.simulation import Simulation

_STEPS = {
    Field.BUSY_PEER,
    Field.BUSY_SEQ,
    Field.CARRIED,
    Field.CARRIED_ACK,
    Field.OVER_LIMIT,
    Field.SESSION,
    Field.STOP_REQUESTED,
}


class SimRing(PyRing):
    """One end of a ring. `single`: there is room for one record only."""

    __slots__ = ("_sim", "_single")

    def __init__(self, buffer: bytearray, sim: Simulation, single: bool) -> None:
        self._sim, self._single = sim, single
        super().__init__(buffer)

    def push(self, *parts: Any) -> bool:
        if self._single and self.used():
            return False
        return super().push(*parts)

    def take_many(self, max_records: int, max_bytes: int, /) -> list[bytes]:
        records = super().take_many(max_records, max_bytes)
        if len(records) > 1 and self._sim.policy.loses():
            del records[0]
            self._sim.holes += 1
        return records

    def set(self, cell: int, value: int, /) -> None:
        self._sim.step(f"ring {Cell.name_of(cell)}")
        super().set(cell, value)


class SimDoorbell(PyDoorbell):
    __slots__ = ("_sim",)

    def __init__(self, buffer: memoryview, offset: int, sim: Simulation) -> None:
        super().__init__(buffer, offset)
        self._sim = sim

    @property
    def armed(self) -> bool:
        return self._word[0] == 1

    def arm(self) -> None:
        super().arm()
        self._sim.step("armed")

    def wait(self, timeout: float, /) -> bool:
        self._sim.sleep(self, timeout)
        return not self.armed

    def ring(self) -> bool:
        self._sim.step("bell")
        rung, self._word[0] = self.armed, 0
        return rung


class SimCells:
    """The cells of a status block."""

    def __init__(self, cells: memoryview, sim: Simulation) -> None:
        self._cells, self._sim = cells, sim

    def __getitem__(self, field: int) -> int:
        return self._cells[field]

    def __setitem__(self, field: int, value: int) -> None:
        if field in _STEPS:
            self._sim.step(f"cell {Field.name_of(field)}")
        elif field == Field.HEARTBEAT_NS:
            self._sim.step("turn")
        self._cells[field] = value


class SimBoard(Board):
    """The board as one process sees it."""

    __slots__ = ("_seen", "_sim")

    def __init__(self, buffer: bytearray, sim: Simulation) -> None:
        super().__init__(buffer)
        self._sim = sim
        self._seen: set[str] = set()

    def block(self, name: str) -> Block:
        block = super().block(name)
        if name not in self._seen:
            self._seen.add(name)
            from bus.layout import DOORBELL_AT, block_at

            at = block_at(self.names.index(name), len(self.names))
            block.doorbell = SimDoorbell(self._view, at + DOORBELL_AT, self._sim)  # type: ignore[assignment,unused-ignore]
            block.cells = SimCells(block.cells, self._sim)  # type: ignore[assignment]
        return block
