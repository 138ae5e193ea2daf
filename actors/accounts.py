"""What is under way between the workers of a system: by their cells and, for those who are dead, by their journals."""

from __future__ import annotations

from collections.abc import Sequence

from actors.plan import Plan
from actors.rundir import RunDirectory, RunDirectoryError
from bus import Board, Cell, Field, Ring
from persist import PersistError, read


class Accounts:
    """Of one system. `rings` are those of the plan's edges, in their order."""

    def __init__(self, plan: Plan, directory: RunDirectory, board: Board, rings: Sequence[Ring]) -> None:
        self._plan, self._directory, self._rings = plan, directory, rings
        self._blocks = {worker.name: board.block(worker.name) for worker in plan.workers}

    def quiet(self) -> bool:
        """Nothing is pending or in progress anywhere, given that no source sends.

        Acknowledgements are read first: a send counts as committed before what caused it is acknowledged, so when
        both readings agree on every edge, no message was pending between them.
        """
        blocks = self._blocks.values()
        acked = [ring.get(Cell.ACK) for ring in self._rings] + [block.get(Field.CARRIED_ACK) for block in blocks]
        committed = [ring.get(Cell.COMMITTED) for ring in self._rings]
        return acked == committed + [block.get(Field.CARRIED) for block in blocks]

    def recount(self, worker: str) -> None:
        """Bring the cells of a dead worker up to its journal: it may have died between an append and telling of it."""
        if self._plan.level == "memory":
            return
        try:
            left = read(self._directory.journal(worker))
        except (PersistError, RunDirectoryError, OSError):
            return  # its next start will tell
        for edge, ring in zip(self._plan.edges, self._rings, strict=True):
            if edge.source == worker:
                ring.set(Cell.COMMITTED, max(ring.get(Cell.COMMITTED), left.assigned.get(edge.target, 0)))
            if edge.target == worker:
                ring.set(Cell.ACK, max(ring.get(Cell.ACK), left.watermarks.get(edge.source, 0)))
        block = self._blocks[worker]
        block.set(Field.CARRIED, max(block.get(Field.CARRIED), left.assigned.get(worker, 0)))
        block.set(Field.CARRIED_ACK, max(block.get(Field.CARRIED_ACK), left.watermarks.get(worker, 0)))

    def pending(self, *, sure: bool) -> dict[str, int]:
        """What was committed and not consumed, by edge, when everyone has ended; nothing of it is lost. `sure`: they
        have ended so that their cells are right."""
        if not sure:
            for worker in self._blocks:
                self.recount(worker)
        counts = {
            f"{edge.source} -> {edge.target}": ring.get(Cell.COMMITTED) - ring.get(Cell.ACK)
            for edge, ring in zip(self._plan.edges, self._rings, strict=True)
        }
        for worker, block in self._blocks.items():
            counts[f"{worker} -> {worker}"] = block.get(Field.CARRIED) - block.get(Field.CARRIED_ACK)
        return {edge: count for edge, count in counts.items() if count > 0}
