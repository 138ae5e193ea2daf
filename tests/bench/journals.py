"""What a restart spends on reading the journal: it is added to every kill, and grows with what was written."""

from __future__ import annotations

import secrets
import shutil
import time

from persist import Journal, Recovered, Send, Snapshot, Transaction
from tests.bench.measure import Case, Figure, Scale, Series

TRANSACTIONS = 20_000  # of one worker under the load of the kills: some twenty seconds
PENDING = 1_000_000  # messages, of which the one receiver has none, and the other all but the last segment
STATE = b"\x81\xa5count\xce\x00\x01\x02\x03"  # of a handler that counts


def recovery(scale: Scale) -> Series:
    """Milliseconds until a journal of small transactions is open again after its writer died."""
    place = scale.directory / secrets.token_hex(4)
    count = scale.count(TRANSACTIONS, 100)
    try:
        journal, _ = Journal.open(place, epoch=0, level="process", make_snapshot=_snapshot)
        for number in range(1, count + 1):
            journal.append(Transaction(consumed=[(1, number)], states=[(0, STATE)]))
        journal.close()
        began = time.monotonic()
        journal, recovered = Journal.open(place, epoch=0, level="process", make_snapshot=_snapshot)
        elapsed = time.monotonic() - began
        journal.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if recovered.watermarks != {"left": count}:
        raise AssertionError(f"recovered {recovered.watermarks} of {count}")
    return {"recoveries": [elapsed * 1e3], "transactions": [elapsed * 1e6 / count]}


def backlog(scale: Scale) -> Series:
    """Milliseconds until a journal of messages of 64 bytes, each in a transaction of its own, is open again."""
    place = scale.directory / secrets.token_hex(4)
    count = scale.count(PENDING, 100)

    def snapshot(recovered: Recovered | None, epoch: int) -> Snapshot:
        last = recovered.assigned if recovered is not None else {}
        return _backlog_snapshot(last.get("absent", 0), recovered.acked.get("present", 0) if recovered else 0)

    try:
        journal, _ = Journal.open(place, epoch=0, level="process", make_snapshot=snapshot)
        body = bytes(64)
        for number in range(1, count + 1):
            journal.append(Transaction(sends=[Send(0, 1, 0, [(0, number), (1, number)], body)]))
            if journal.due:
                journal.rotate(_backlog_snapshot(number, number))
        journal.close()
        began = time.monotonic()
        journal, recovered = Journal.open(place, epoch=0, level="process", make_snapshot=snapshot)
        elapsed = time.monotonic() - began
        journal.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if recovered.assigned["absent"] - recovered.acked.get("absent", 0) != count:
        raise AssertionError(f"recovered {recovered.assigned} and {recovered.acked} of {count}")
    return {"recoveries": [elapsed * 1e3]}


def _backlog_snapshot(assigned: int, acked: int) -> Snapshot:
    numbers = [(0, assigned), (1, assigned)]
    acknowledged = [(1, acked)]
    routes = [("source", "Tick")]
    return Snapshot("process", "bench", ["absent", "present"], [], routes, assigned=numbers, acked=acknowledged)


def _snapshot(recovered: Recovered | None, epoch: int) -> Snapshot:
    watermarks = [] if recovered is None else [(1, recovered.watermarks["left"])]
    return Snapshot("process", "bench", ["gateway", "left"], ["victim"], [("source", "Tick")], watermarks)


def cases() -> list[Case]:
    figures = (Figure("all of it", "recoveries", "ms"), Figure("each", "transactions", "us"))
    return [
        Case(f"recovery of {TRANSACTIONS:,} transactions", "process", recovery, figures, ours=True),
        Case(f"recovery of {PENDING:,} messages", "process", backlog, figures[:1], ours=True),
    ]
