"""Arrow tables by claim check: their buffers stand beside the pickle, in a file, and what a handler gets are views of
it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import PICKLE, Handler, Message, System, Topology, handle
from bus import Field

from .test_claims import LEVELS, MIB, there
from .waiting import until

pa = pytest.importorskip("pyarrow")

LARGE = 1_500_000  # rows: 48 MB
SMALL = 40_000
CLAIM = re.compile(r"/(ringleader-[^/]*c\d+-[0-9a-f]+|[0-9a-f]{16}\.claim)$")


class Sheet:
    def __init__(self, n: int, table: Any) -> None:
        self.n, self.table = n, table


class Get(Message): ...


class Seen(Message):
    sheets: list[tuple[int, bool, int, int, int]]


def table_of(n: int, rows: int) -> Any:
    """Numbers, floats with nulls, texts, dictionaries; in two chunks, as one pickles whole what it is a slice of."""
    return pa.concat_tables([chunk_of(n, 0, rows // 3), chunk_of(n, rows // 3, rows)])


def chunk_of(n: int, begin: int, end: int) -> Any:
    numbers = np.arange(begin, end, dtype=np.int64) * (n + 1)
    rows = end - begin
    columns = {
        "number": pa.array(numbers),
        "value": pa.array(numbers / 7, mask=numbers % 5 == 0),
        "text": pa.Array.from_buffers(
            pa.string(),
            rows,
            [None, pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * 8), pa.py_buffer(numbers % 26 + 97)],
        ),
        "kind": pa.DictionaryArray.from_arrays(pa.array((numbers % 3).astype(np.int32)), ["a", "b", f"c{n}"]),
    }
    return pa.table(columns)


def buffers_of(table: Any) -> list[Any]:
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    return [buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None]


def in_claims(buffers: list[Any]) -> int:
    """How many bytes of them are in claims that this process has mapped, read-only."""
    claims = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, flags, *_, path = line.removesuffix(" (deleted)").split(maxsplit=5)
        if CLAIM.search(path) and flags.startswith("r-"):
            first, last = (int(end, 16) for end in where.split("-"))
            claims.append(range(first, last))
    return sum(one.size for one in buffers if any(one.address in claim for claim in claims))


class Keeper(Handler):
    """Keeps all it gets, and looks at it when it is asked. Before that it waits, at sheet 1, for a file to be there."""

    def __init__(self, began: str, gate: str) -> None:
        self.began, self.gate = Path(began), Path(gate)
        self.sheets: list[Sheet] = []

    @handle
    def on_sheet(self, sheet: Sheet) -> None:
        with open(self.began, "a") as file:
            file.write(f"{sheet.n} ")
        if sheet.n == 1:
            until(self.gate.exists, "the gate", 60)
        self.sheets.append(sheet)

    @handle
    def on_get(self, get: Get) -> None:
        found = []
        for sheet in self.sheets:
            table, buffers = sheet.table, buffers_of(sheet.table)
            mutable = sum(one.size for one in buffers if one.is_mutable)
            same = table.equals(table_of(sheet.n, table.num_rows)) and table.validate(full=True) is None
            found.append((sheet.n, same, sum(one.size for one in buffers), in_claims(buffers), mutable))
        self.sheets.clear()
        self.reply(Seen(found))


def seen(system: System) -> list[tuple[int, bool, int, int, int]]:
    return system.ask("keeper", Get(), reply=Seen, timeout=60).sheets


@pytest.mark.parametrize("level", LEVELS)
def test_a_table_of_50_mb_arrives_equal_as_views_of_its_claim_also_when_its_receiver_is_killed(
    tmp_path: Path, level: str
) -> None:
    began, gate, directory = tmp_path / "began", tmp_path / "gate", tmp_path / "run"
    app = Topology(
        "arrow",
        directory=directory,
        durability=level,
        ring_bytes=MIB,
        outbox_limit_bytes=256 * MIB,
        claims_limit_bytes=256 * MIB,
        max_restarts=100,
        backoff_first=0.001,
    )
    app.worker("work", keeper=Keeper.spec(str(began), str(gate)))
    app.external("keeper", Sheet, Get)
    app.codec(Sheet, PICKLE)

    def begun() -> list[int]:
        return [int(n) for n in began.read_text().split()] if began.exists() else []

    with app.start() as system:
        block = system.block("work")
        system.send("keeper", Sheet(0, table_of(0, SMALL)), timeout=60)
        assert [one[:2] for one in seen(system)] == [(0, True)]
        system.send("keeper", Sheet(1, table_of(1, LARGE)), timeout=60)
        for n in range(2, 6):
            system.send("keeper", Sheet(n, table_of(n, SMALL)), timeout=60)
        until(lambda: begun() == [0, 1], "the table", 60)
        os.kill(block.get(Field.PID), signal.SIGKILL)
        until(lambda: begun() == [0, 1, 1], "the table again", 60)
        gate.touch()
        until(lambda: begun()[-1] == 5, "the last one", 60)
        found = seen(system)
        assert [one[:2] for one in found] == [(n, True) for n in range(1, 6)]
        for n, _, size, claimed, mutable in found:
            assert size > (40 * MIB if n == 1 else MIB)
            assert 0 <= size - claimed < 10_000  # those that are too small to stand beside the pickle
            assert mutable <= size - claimed
        # Each is freed once: of two messages in the same memory, one would not be as it was sent.
        for n in range(6, 10):
            system.send("keeper", Sheet(n, table_of(n, SMALL)), timeout=60)
        until(lambda: begun()[-1] == 9, "the others", 60)
        assert [one[:2] for one in seen(system)] == [(n, True) for n in range(6, 10)]
        assert begun() == [0, 1, 1, *range(2, 10)]
        assert block.get(Field.DEATHS) == 1
        if level != "memory":  # there, what was used is kept for the next ones
            until(lambda: not there(directory), "claims to be freed")
    assert not there(directory)
