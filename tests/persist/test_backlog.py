"""Outbound over a real journal: a backlog that is not kept in memory comes back from disk, in order and complete."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from persist import DUPLICATE, UNKNOWN, Entry, Inbound, Journal, Kind, Outbound, Recovered, Send, Transaction, check
from tests.persist.building import PEERS, after, open_journal

LIMIT = 2000


class Sender:
    """What a worker does with its journal and the outbound ends of its edges."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.out: list[Outbound] = []
        self.open([UNKNOWN] * len(PEERS))

    def open(self, resume: list[int]) -> None:
        self.journal: Journal
        recovered: Recovered
        self.journal, recovered = open_journal(self.directory, segment_bytes=3000)
        self.out = [Outbound(LIMIT) for _ in PEERS]
        for name, out, hint in zip(PEERS, self.out, resume, strict=True):
            assigned, acked = recovered.assigned.get(name, 0), recovered.acked.get(name, 0)
            size = recovered.unacked_bytes.get(name, 0)
            out.restore(assigned, acked, hint, recovered.unacked_from.get(name), size)

    def commit(self, runs: list[tuple[int, int]]) -> None:
        sends = []
        for peer, count in runs:
            first = self.out[peer].assign(count)
            body = b"".join(b"%20d" % number for number in range(first, first + count))
            sends.append(Send(peer, count, 0, [(peer, first)], body))
        position = self.journal.append(Transaction(sends=sends))
        for send in sends:
            peer, first = send.edges[0]
            self.out[peer].committed(first, send.count, len(send.body), send.body, position)
        if self.journal.due:
            numbers = [(peer, out.last_committed) for peer, out in enumerate(self.out) if out.last_committed]
            acked = [(peer, out.acked) for peer, out in enumerate(self.out)]
            self.journal.rotate(after(0, assigned=numbers, acked=acked))

    def publish(self, peer: int, most: int) -> list[tuple[int, int, bytes]]:
        out = self.out[peer]
        published: list[tuple[int, int, bytes]] = []
        while len(published) < most:
            if out.needs_refill:
                assert out.spilled_from is not None
                out.refill(
                    Entry(send.edges[0][1], send.count, len(send.body), send.body, position)
                    for position, send in self.journal.sends(peer, out.published, out.spilled_from)
                )
            if out.peek() is None:
                break
            entry = out.pop()
            published.append((entry.first, entry.count, bytes(entry.payload)))
        assert out.memory_bytes <= LIMIT
        return published


class Receiver:
    def __init__(self) -> None:
        self.end = Inbound()
        self.got: list[int] = []

    def take(self, records: list[tuple[int, int, bytes]]) -> None:
        for first, count, body in records:
            verdict = self.end.admit(first, count)
            if verdict is DUPLICATE:
                continue
            assert verdict.kind is Kind.NEW, verdict
            numbers = [int(body[20 * n : 20 * n + 20]) for n in range(count)]
            self.got += numbers[verdict.skip :]
            self.end.stage(first + count - 1)
            self.end.commit()


@pytest.mark.parametrize("seed", range(6))
def test_spilled_backlog_is_refilled_in_order_through_rotations_trims_and_crashes(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    sender, receivers = Sender(tmp_path), [Receiver() for _ in PEERS]
    spilled = 0
    for _ in range(250):
        sender.commit([(choose.randrange(2), choose.randint(1, 12)) for _ in range(choose.randint(1, 4))])
        spilled += any(out.spilled_from is not None for out in sender.out)
        for peer, receiver in enumerate(receivers):
            if choose.random() < 0.3:
                receiver.take(sender.publish(peer, choose.randint(1, 12)))
            if choose.random() < 0.2:
                sender.out[peer].acknowledge(receiver.end.watermark)
        sender.journal.trim({peer: out.acked for peer, out in enumerate(sender.out)})
        if choose.random() < 0.02:
            sender.journal.close()
            sender.open([choose.choice([UNKNOWN, receiver.end.watermark]) for receiver in receivers])
        if choose.random() < 0.02:
            peer = choose.randrange(2)
            sender.out[peer].rewind(receivers[peer].end.watermark)
    assert spilled > 20
    for peer, receiver in enumerate(receivers):
        receiver.take(sender.publish(peer, 10**6))
        out = sender.out[peer]
        assert receiver.got == list(range(1, out.last_committed + 1))
        assert (out.backlog_messages, out.backlog_bytes, out.spilled_from) == (0, 0, None)
        out.acknowledge(receiver.end.watermark)
    sender.journal.trim({peer: out.acked for peer, out in enumerate(sender.out)})
    assert sender.journal.segments == 1
    sender.journal.close()
    assert check(tmp_path).ok


def test_outbox_of_a_recovered_journal_is_not_read_before_it_is_needed(tmp_path: Path) -> None:
    sender = Sender(tmp_path)
    for _ in range(50):
        sender.commit([(0, 10)])
    sender.journal.close()
    sender.open([UNKNOWN, UNKNOWN])
    out = sender.out[0]
    assert (out.memory_bytes, out.needs_refill) == (0, True)
    assert out.backlog_messages == 500
    size = out.backlog_bytes
    assert 10000 <= size < 20000
    assert [first for first, *_ in sender.publish(0, 3)] == [1, 11, 21]
    assert out.backlog_bytes == size - 600
    sender.journal.close()
