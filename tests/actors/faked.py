"""A system without processes: a real run directory, real segments, and cells that the test fills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec

from actors.identity import EdgeIdentity, Exit, new_identity, process_start, segment_name
from actors.plan import GATEWAY
from actors.rundir import RunDirectory
from bus import Block, Board, BoardCell, Cell, Field, Segment, WorkerState, format_ring, ring_size

from .waiting import until

CAPACITY = 4096
SECOND = 1_000_000_000


class FakeSystem:
    """By default everything is well: each worker runs as this very process, and beats, be the test ever so slow."""

    def __init__(
        self,
        home: Path,
        name: str = "trades",
        *,
        workers: Sequence[str] = ("ingest", "stats"),
        pid: int | None = None,
        level: str = "process",
        shared_memory: bool = True,
    ) -> None:
        self.path = home / name
        self.workers = tuple(workers)
        self.segments: list[Segment] = []
        identity = new_identity(name)
        run_id = identity.run_id
        peers = (GATEWAY, *workers)
        ends = [(GATEWAY, worker) for worker in workers] + list(pairwise(workers))
        edges = [EdgeIdentity(*end, segment_name(run_id, number)) for number, end in enumerate(ends, 1)]
        self.identity = msgspec.structs.replace(
            identity,
            level=level,
            started_ns=time.time_ns() - 10 * SECOND,
            board=segment_name(run_id, 0),
            workers=self.workers,
            handlers={worker: (f"{worker}_first", f"{worker}_second") for worker in workers},
            peers=peers,
            edges=tuple(edges),
        )
        if pid is not None:
            self.identity = msgspec.structs.replace(self.identity, pid=pid, start_time=process_start(pid) or 0)
        with RunDirectory.open(self.path) as directory:
            directory.write_identity(self.identity)
        if shared_memory:
            self.share(peers)

    def share(self, peers: Sequence[str]) -> None:
        self.segments.append(Segment.create(self.identity.board, Board.size(peers)))
        self.board = Board.format(self.segments[0].buf, peers)
        self.board.set(BoardCell.SYSTEM_STATE, WorkerState.RUNNING)
        self.board.set(BoardCell.SUPERVISOR_HEARTBEAT_NS, _beats())
        for peer in peers:
            self.runs(peer, os.getpid())
        for edge in self.identity.edges:
            self.segments.append(Segment.create(edge.ring, ring_size(CAPACITY)))
            format_ring(self.segments[-1].buf, CAPACITY, 1)

    def runs(self, worker: str, pid: int) -> None:
        self.fill(
            worker,
            PID=pid,
            STATE=WorkerState.RUNNING,
            EPOCH=1,
            STARTED_NS=time.monotonic_ns() - SECOND // 2,
            HEARTBEAT_NS=_beats(),
            JOURNAL_BYTES=4096,
        )

    def block(self, worker: str) -> Block:
        return self.board.block(worker)

    def fill(self, worker: str, **cells: int) -> None:
        for field, value in cells.items():
            self.block(worker).set(Field[field], value)

    def edge(self, source: str, target: str, **cells: int) -> None:
        with self.header(source, target) as header:
            for cell, value in cells.items():
                header[Cell[cell]] = value

    @contextmanager
    def header(self, source: str, target: str) -> Iterator[memoryview]:
        number = [(edge.source, edge.target) for edge in self.identity.edges].index((source, target)) + 1
        with self.segments[number].buf[:512] as raw, raw.cast("Q") as cells:
            yield cells

    def end(self, status: int, reason: str, **changes: object) -> None:
        ending = Exit(run_id=self.identity.run_id, status=status, reason=reason, ended_ns=time.time_ns())
        with RunDirectory.open(self.path) as directory:
            directory.write_exit(msgspec.structs.replace(ending, **changes))

    def unlink(self) -> None:
        """Shared memory goes. Twice is fine."""
        if self.segments:
            self.board.close()
        for segment in self.segments:
            segment.close()
            segment.unlink()
        self.segments = []


def _beats() -> int:
    """A beat that is never an old one: of the hour to come, which counts as now."""
    return time.monotonic_ns() + 3600 * SECOND


@contextmanager
def process(code: str = "import signal; signal.pause()") -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which does nothing by default."""
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def send(pid: int, number: signal.Signals) -> None:
    """A signal to stop or continue a process, returned from when it has had its effect."""
    os.kill(pid, number)
    wanted = number is signal.SIGSTOP
    until(lambda: (_state(pid) == "T") == wanted, f"{number.name} to take effect")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ended_process() -> int:
    """The number of a process that has been."""
    with process("pass") as child:
        child.wait()
        return child.pid
