"""ILM between two processes over a Unix socket, with each backend; and how soon a first message is there."""

from __future__ import annotations

import asyncio
import functools
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.bench.measure import P50, P99, Case, Scale, Series
from tests.bench.pairs import Meet, run_pair

SIZE = 64  # bytes of a message; the first eight are its number
BATCH = 256  # messages of one `send_many`
TRIPS, WARMUP = 2_000, 100
FIRSTS = 200
PATIENCE = 60.0  # seconds
SYNCED = 2_000  # messages, if each waits for the disk
ONE_WAY = {"memory": 200_000, "journal, process": 200_000, "journal, power": 100_000, "SQLite, process": 50_000}


def backend(kind: str, place: Path) -> Any:
    from persist.ilm.backend_journal import JournalBackend
    from persist.ilm.backend_memory import MemoryBackend
    from persist.ilm.backend_sqlite import SQLiteBackend

    name, _, level = kind.partition(", ")
    if name == "memory":
        return MemoryBackend()
    if name == "journal":
        return JournalBackend(place, level)
    return SQLiteBackend(place, level)


@asynccontextmanager
async def peer(name: str, kind: str, place: Path, deliver: Any) -> AsyncIterator[Any]:
    """An ILM that is connected with the other one; left is bound first, right connects."""
    from bus import StreamTransport, UnixAddress
    from persist.ilm.facade import ILM

    socket = UnixAddress(str(place / "socket"))
    where: Any = {"listen": [socket]} if name == "left" else {"connect": {"left": socket}}
    transport = await StreamTransport.open(name, **where)
    async with ILM.open(backend(kind, place / name), deliver, transport) as ilm:
        yield ilm


async def connected(ilm: Any) -> None:
    while not ilm.connected_peers():
        await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------------ one way
def one_way(kind: str, batch: int, scale: Scale) -> Series:
    """Messages per second, seen by the delivery target: from the first to the last."""
    whole = SYNCED if kind.endswith("power") and batch == 1 else ONE_WAY[kind]
    count = max(1, scale.count(whole, 2_000) // BATCH) * BATCH
    with _Place(scale) as place:
        (elapsed, seen), _ = run_pair(
            (_receive, (kind, place, count)), (_send, (kind, place, count, batch)), scale.timeout
        )
    if seen != list(range(1, 1 + len(seen))):
        raise AssertionError("a message is missing, doubled or out of order")
    return {"rate": [(count - 1) / elapsed]}


def _receive(meet: Meet, kind: str, place: Path, count: int) -> tuple[float, list[int]]:
    return asyncio.run(_received(meet, kind, place, count))


async def _received(meet: Meet, kind: str, place: Path, count: int) -> tuple[float, list[int]]:
    seen: list[int] = []
    times: list[float] = []
    complete = asyncio.Event()

    def deliver(message: Any) -> None:
        seen.append(int.from_bytes(message.contents[:8], "little"))
        if len(seen) in {1, count}:
            times.append(time.monotonic())
            if len(seen) == count:
                complete.set()

    async with peer("left", kind, place, deliver), asyncio.timeout(PATIENCE):
        await asyncio.to_thread(meet)
        await complete.wait()
        await asyncio.to_thread(meet)  # the loop goes on: acknowledgements leave
    return times[-1] - times[0], seen


def _send(meet: Meet, kind: str, place: Path, count: int, batch: int) -> None:
    asyncio.run(_sent(meet, kind, place, count, batch))


async def _sent(meet: Meet, kind: str, place: Path, count: int, batch: int) -> None:
    rest = bytes(SIZE - 8)
    contents = [number.to_bytes(8, "little") + rest for number in range(1, count + 1)]
    async with peer("right", kind, place, lambda message: None) as ilm, asyncio.timeout(PATIENCE):
        await connected(ilm)
        await asyncio.to_thread(meet)
        if batch == 1:
            for one in contents:
                await ilm.send_to("left", one)
        else:
            for start in range(0, count, batch):
                await ilm.send_many("left", contents[start : start + batch])
        while ilm.pending():
            await asyncio.sleep(0.005)
        await asyncio.to_thread(meet)


# ------------------------------------------------------------------------------------------------ there and back
def round_trip(kind: str, scale: Scale) -> Series:
    """Microseconds from `send_to` to the delivery of the answer, back to back. The answer is an effect of the ball."""
    trips = scale.count(TRIPS, 5)
    with _Place(scale) as place:
        _, measured = run_pair((_return, (kind, place)), (_serve, (kind, place, trips)), scale.timeout)
    return {"trips": measured}


def _return(meet: Meet, kind: str, place: Path) -> None:
    asyncio.run(_returned(meet, kind, place))


async def _returned(meet: Meet, kind: str, place: Path) -> None:
    from persist.ilm.delivery import Effects

    async with peer("left", kind, place, lambda ball: Effects(send=[("right", ball.contents)])):
        await asyncio.to_thread(meet)
        await asyncio.to_thread(meet)


def _serve(meet: Meet, kind: str, place: Path, trips: int) -> list[float]:
    return asyncio.run(_served(meet, kind, place, trips))


async def _served(meet: Meet, kind: str, place: Path, trips: int) -> list[float]:
    back = asyncio.Event()
    ball, measured = bytes(SIZE), []
    async with peer("right", kind, place, lambda message: back.set()) as ilm, asyncio.timeout(PATIENCE):
        await connected(ilm)
        await asyncio.to_thread(meet)
        for _ in range(trips + WARMUP):
            began = time.monotonic_ns()
            await ilm.send_to("left", ball)
            await back.wait()
            measured.append((time.monotonic_ns() - began) / 1e3)
            back.clear()
        await asyncio.to_thread(meet)
    return measured[WARMUP:]


# ------------------------------------------------------------------------------------------------ the first message
def first(scale: Scale) -> Series:
    """Microseconds from the first `send_to` of two peers that have just met to its delivery, in one process."""
    return {"trips": [asyncio.run(_first()) for _ in range(scale.count(FIRSTS, 5))]}


async def _first() -> float:
    from persist.ilm.backend_memory import MemoryBackend
    from persist.ilm.facade import ILM
    from persist.ilm.memory_network import MemoryNetwork

    network, there = MemoryNetwork(), asyncio.Event()
    at = 0

    def deliver(message: Any) -> None:
        nonlocal at
        at = time.monotonic_ns()
        there.set()

    async with (
        ILM.open(MemoryBackend(), deliver, network.join("left")),
        ILM.open(MemoryBackend(), lambda message: None, network.join("right")) as right,
        asyncio.timeout(PATIENCE),
    ):
        await connected(right)
        began = time.monotonic_ns()
        await right.send_to("left", bytes(SIZE))
        await there.wait()
    return (at - began) / 1e3


class _Place:
    """A directory that only its owner can write to, for a while."""

    def __init__(self, scale: Scale) -> None:
        self._path = scale.directory / secrets.token_hex(4)

    def __enter__(self) -> Path:
        self._path.mkdir(mode=0o700)
        return self._path

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def cases() -> list[Case]:
    found = []
    for batch, title in ((1, "ILM, 64 B each"), (BATCH, f"ILM, 64 B, {BATCH} at once")):
        for kind in ONE_WAY:
            found.append(Case(title, kind, functools.partial(one_way, kind, batch), ours=True))
    for kind in ("memory", "journal, process"):
        found.append(Case("ILM, there and back", kind, functools.partial(round_trip, kind), (P50, P99), ours=True))
    found.append(Case("ILM, first message", "memory network", first, (P50, P99), ours=True))
    return found
