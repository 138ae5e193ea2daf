"""Small journals to try things on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persist import Journal, Recovered, Send, Snapshot, Transaction, snapshot_of
from persist.files import Directory, File
from persist.format import segment_name
from persist.recovery import Route

PEERS = ("left", "right")
HANDLERS = ("counter", "table")
ROUTES: tuple[Route, ...] = (("counter", "Tick"), ("table", "Row"))


def snapshots(
    peers: Sequence[str] = PEERS,
    handlers: Sequence[str] = HANDLERS,
    routes: Sequence[Route] = ROUTES,
    level: str = "process",
) -> Callable[[Recovered | None, int], Snapshot]:
    """What recovery found, under these names."""

    def make(recovered: Recovered | None, epoch: int) -> Snapshot:
        return snapshot_of(
            recovered or Recovered(), level=level, fingerprint="f", peers=peers, handlers=handlers, routes=routes
        )

    return make


def open_journal(directory: Path, **changes: Any) -> tuple[Journal, Recovered]:
    options: dict[str, Any] = {
        "epoch": 0,
        "level": "process",
        "make_snapshot": snapshots(level=changes.get("level", "process")),
    }
    return Journal.open(directory, **(options | changes))


def transaction(number: int, *, peer: int = 0, count: int = 1, first: int | None = None) -> Transaction:
    """The `number`th of a series: consumes message `number` from `left`, sends one run, and has `number` as state."""
    return Transaction(
        consumed=[(0, number)],
        sends=[Send(0, count, 0, [(peer, number if first is None else first)], b"body %d" % number)],
        states=[(0, b"%d" % number)],
        keys=[(1, b"key %d" % (number % 3), b"%d" % number)],
    )


def after(number: int, acked: Sequence[tuple[int, int]] = (), **changes: Any) -> Snapshot:
    """The snapshot that belongs behind the `number`th transaction of the series."""
    rows = {b"key %d" % (n % 3): b"%d" % n for n in range(1, number + 1)}
    numbers = [(0, number)] if number else []
    made = Snapshot(
        "process",
        "f",
        list(PEERS),
        list(HANDLERS),
        list(ROUTES),
        watermarks=numbers,
        assigned=list(numbers),
        acked=list(acked),
        states=[(0, b"%d" % number)] if number else [],
        tables=[(1, key, value) for key, value in rows.items()],
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def filled(directory: Path, count: int, **changes: Any) -> list[int]:
    """A closed journal with one segment and the first transactions of the series; their positions."""
    journal, _ = open_journal(directory, **changes)
    positions = [journal.append(transaction(number)) for number in range(1, count + 1)]
    journal.close()
    return positions


def in_segments(directory: Path, *counts: int) -> list[int]:
    """A closed journal with so many transactions of the series in each segment; their positions."""
    journal, _ = open_journal(directory)
    positions: list[int] = []
    for segment, count in enumerate(counts):
        if segment:
            journal.rotate(after(len(positions)))
        for _ in range(count):
            positions.append(journal.append(transaction(len(positions) + 1)))
    journal.close()
    return positions


class InMemory(Directory):
    """Segments without a disk, for tests that read very many."""

    def __init__(self, segments: Mapping[int, bytes]) -> None:
        self.path = "memory"
        self.files = {segment_name(number): data for number, data in segments.items()}

    def list(self) -> list[str]:
        return list(self.files)

    def open(self, name: str, *, writable: bool = False) -> File:
        return _InMemoryFile(name, self.files[name])


class _InMemoryFile(File):
    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(-1, path)
        self.data = data

    def read(self, size: int, offset: int) -> bytes:
        return self.data[offset : offset + size]

    def size(self) -> int:
        return len(self.data)


def written(directory: Path) -> int:
    """Bytes of all segments, but for space that is reserved and not used."""
    return sum(len(path.read_bytes().rstrip(b"\0")) for path in directory.glob("*.journal"))


def path_of(directory: Path, number: int) -> Path:
    return directory / segment_name(number)


def meaning(recovered: Recovered) -> tuple:
    """What a worker gets from recovery, but for where its outbox begins."""
    return (
        recovered.states,
        recovered.tables,
        recovered.watermarks,
        {peer: last for peer, last in recovered.assigned.items() if last},
        recovered.attempts,
        recovered.dead,
    )


def series(number: int) -> tuple:
    """The meaning of the first `number` transactions of the series."""
    rows = {b"key %d" % (n % 3): b"%d" % n for n in range(1, number + 1)}
    return (
        {"counter": b"%d" % number} if number else {},
        {"table": rows} if rows else {},
        {"left": number} if number else {},
        {"left": number} if number else {},
        {},
        [],
    )
