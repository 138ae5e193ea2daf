"""Many records through a small ring between two processes, each one checked; `python -m tests.bus.stress` does more."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain

import pytest

from tests.bus.implementations import needs_c, pairs
from tests.bus.stress import Damaged, Plan, Receiver, stress


@needs_c
@pytest.mark.parametrize(("capacity", "records"), [(4096, 1_000_000), (1 << 16, 4_000_000)])
def test_millions_of_records_come_whole_and_in_order(capacity: int, records: int) -> None:
    checked, _, laps, _ = stress(("c", "c"), records, random.randrange(10**6), capacity)
    assert checked >= records
    assert laps > records * 8 // capacity


@needs_c
def test_two_hundred_thousand_records_are_whole_where_they_were_written_and_read() -> None:
    checked, _, laps, _ = stress(("c", "c"), 200_000, random.randrange(10**6), 1 << 14, in_place=True)
    assert checked >= 200_000
    assert laps > 300


@pairs
def test_either_ring_reads_in_place_what_either_has_written_in_place(producer: str, consumer: str) -> None:
    assert stress((producer, consumer), 10_000, random.randrange(10**6), 4096, in_place=True)[0] >= 10_000


@pairs
def test_either_ring_sends_to_either(producer: str, consumer: str) -> None:
    assert stress((producer, consumer), 100_000, random.randrange(10**6), 4096)[0] >= 100_000


def flip(records: list[bytes], at: int) -> None:
    records[at] = bytes([records[at][0] ^ 1]) + records[at][1:]


def drop(records: list[bytes], at: int) -> None:
    del records[at]


def double(records: list[bytes], at: int) -> None:
    records.insert(at, records[at])


def swap(records: list[bytes], at: int) -> None:
    records[at], records[at + 1] = records[at + 1], records[at]


def split(records: list[bytes], at: int) -> None:
    records[at : at + 1] = [records[at][:1], records[at][1:]]


def shift(records: list[bytes], at: int) -> None:
    """The checksum stays right; where one record ends and the next begins does not."""
    records[at], records[at + 1] = records[at][:-1], records[at][-1:] + records[at + 1]


def sent() -> list[bytes]:
    return list(chain.from_iterable(Plan(5).sent(3_000)))


def received(records: list[bytes]) -> Receiver:
    receiver, chance, at = Receiver(Plan(5)), random.Random(5), 0
    while at < len(records):
        many = chance.randint(1, 700)
        receiver.take(records[at : at + many])
        at += many
    receiver.finish()
    return receiver


def test_what_was_sent_is_accepted_in_whatever_pieces_it_comes() -> None:
    records = sent()
    assert received(records).records == len(records) >= 3_000


@pytest.mark.parametrize("damage", [flip, drop, double, swap, split, shift])
def test_what_is_not_as_it_was_sent_is_noticed(damage: Callable[[list[bytes], int], None]) -> None:
    chance = random.Random(1)
    for _ in range(8):
        records = sent()
        while True:
            at = chance.randrange(len(records) - 2)
            if len(records[at]) > 1 and len(records[at + 1]) > 1 and records[at] != records[at + 1]:
                break
        damage(records, at)
        with pytest.raises(Damaged):
            received(records)


def test_groups_that_come_in_another_order_are_noticed() -> None:
    groups = Plan(5).sent(10**9)
    first, second = next(groups), next(groups)
    assert received(first + second).records == len(first) + len(second)
    for wrong in (second + first, first + first):
        with pytest.raises(Damaged, match="turn of"):
            received(wrong)
