"""Each peer has its share of the inbox, however often it connects, and is paused beyond it."""

from __future__ import annotations

import asyncio

import pytest

from bus.streams.inbox import OVERHEAD, Inbox
from tests.bus.streams.building import asynchronous

SHARE = 10 * OVERHEAD


class Connection:
    def __init__(self) -> None:
        self.deaf = False

    def pause(self) -> None:
        assert not self.deaf
        self.deaf = True

    def resume(self) -> None:
        assert self.deaf
        self.deaf = False


def fill(inbox: Inbox, source: Connection, peer: str) -> int:
    """Frames until the source is paused."""
    count = 0
    while not source.deaf:
        inbox.put(source, peer, bytes(OVERHEAD))
        count += 1
        assert count < 100
    return count


@asynchronous
async def test_a_source_is_paused_over_its_share_and_resumed_at_half_of_it():
    inbox, source = Inbox(SHARE), Connection()
    assert fill(inbox, source, "bob") == 6
    taken = 0
    while source.deaf:
        await inbox.get()
        taken += 1
    assert taken == 4


@asynchronous
async def test_others_are_not_paused():
    inbox, one, other = Inbox(SHARE), Connection(), Connection()
    fill(inbox, one, "bob")
    inbox.put(other, "carol", b"x")
    assert not other.deaf


@asynchronous
async def test_a_new_connection_of_a_peer_over_its_share_is_paused_at_once_and_the_old_one_left_alone():
    inbox, old, new = Inbox(SHARE), Connection(), Connection()
    fill(inbox, old, "bob")
    inbox.announce(new, "bob")
    assert (old.deaf, new.deaf) == (True, True)
    for _ in range(5):
        await inbox.get()
    assert (old.deaf, new.deaf) == (True, False)


@asynchronous
async def test_connecting_again_and_again_is_told_once_until_it_is_taken():
    inbox = Inbox(SHARE)
    for _ in range(100):
        inbox.announce(Connection(), "bob")
    inbox.put(Connection(), "carol", b"x")
    assert [await inbox.get(), await inbox.get()] == [("bob", b""), ("carol", b"x")]
    inbox.announce(Connection(), "bob")
    assert await inbox.get() == ("bob", b"")


@asynchronous
async def test_what_was_taken_is_forgotten():
    inbox = Inbox(SHARE)
    for number in range(100):
        inbox.announce(Connection(), number)
        await inbox.get()
    assert not inbox._shares


@asynchronous
async def test_who_waits_gets_what_comes_and_the_end():
    inbox = Inbox(SHARE)
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(Connection(), "bob", b"x")
    assert await waiting == ("bob", b"x")
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(Connection(), "bob", b"too late")
    inbox.close(ZeroDivisionError())
    inbox.close(KeyError())
    for ask in (waiting, inbox.get()):
        with pytest.raises(ZeroDivisionError):
            await ask
    inbox.put(Connection(), "bob", b"nobody takes this any more")
    assert not inbox._items
