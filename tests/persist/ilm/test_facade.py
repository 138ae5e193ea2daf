"""ILM as its users see it: what is sent arrives, once and in order; what cannot be sent is said."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from persist.ilm import facade
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.errors import (
    ContentsTooLarge,
    ILMClosed,
    MessageIdNotNew,
    SendToSelf,
    ShutdownTimedOut,
    StorageFull,
    WireError,
    WrongSource,
)
from persist.ilm.facade import ILM
from persist.ilm.message import ILMMessage, PeerId
from tests.persist.ilm.building import (
    Got,
    Two,
    Wrapped,
    full,
    kill,
    no_timers,
    scenario,
    turns_until,
    until,
)

SEVERAL = [b"%d" % number for number in range(100)]


@dataclass
class Letter:
    """A user's own message: more fields, and another order would do, too."""

    source_id: PeerId
    destination_id: PeerId
    message_id: int
    contents: bytes
    read: bool = False


# ------------------------------------------------------------------------------------------------ what is sent arrives
@scenario
async def test_messages_arrive_in_order_both_ways() -> None:
    two = Two()
    async with await two.open("a") as a, await two.open("b") as b:
        assert [await a.send_to("b", one) for one in SEVERAL] == list(range(1, 101))
        assert await b.send_many("a", SEVERAL) == range(1, 101)
        await until(lambda: len(two.got["a"].messages) == len(two.got["b"].messages) == 100)
        assert two.got["b"].messages == [ILMMessage("a", "b", 1 + index, one) for index, one in enumerate(SEVERAL)]
        assert two.got["a"].messages == [ILMMessage("b", "a", 1 + index, one) for index, one in enumerate(SEVERAL)]
        assert (a.local_id, set(a.connected_peers())) == ("a", {"b"})
        await until(lambda: a.pending() == b.pending("a") == 0)
        assert a.pending("never heard of") == 0


@scenario
async def test_open_can_be_entered_without_being_awaited() -> None:
    two = Two()
    async with ILM.open(MemoryBackend(), two.got["a"], two.network.join("a")) as a:
        assert a.local_id == "a"
    with pytest.raises(ILMClosed):
        await a.send_to("b", b"")


@scenario
async def test_numbers_and_names_are_peers_that_differ() -> None:
    two = Two()
    five, name = Got(), Got()
    async with (
        await two.open("a") as a,
        ILM.open(MemoryBackend(), five, two.network.join(5)),
        ILM.open(MemoryBackend(), name, two.network.join("5")),
    ):
        await a.send_to(5, b"number")
        await a.send_to("5", b"name")
        await until(lambda: five.messages and name.messages)
    assert (five.contents, name.contents) == ([b"number"], [b"name"])


@scenario
async def test_an_unknown_peer_is_waited_for() -> None:
    two = Two()
    async with await two.open("a") as a:
        await a.send_many("b", SEVERAL)
        assert a.pending("b") == 100
        async with await two.open("b"):
            await until(lambda: a.pending("b") == 0)
    assert two.got["b"].contents == SEVERAL


@scenario
async def test_the_first_message_is_sent_at_once() -> None:
    """No timer of any kind lies between a send and its delivery."""
    two = Two()
    async with await two.open("a") as a, await two.open("b"):
        await until(lambda: a.statistics().get("b") and a._known["b"].session.greeted)
        with no_timers():
            for number in range(1, 21):
                await a.send_to("b", b"")
                await turns_until(lambda: len(two.got["b"].messages) == number)  # noqa: B023


@scenario
async def test_a_user_brings_ids_and_a_message_class() -> None:
    two = Two()
    letters: list[Letter] = []
    network, backend = two.network, two.backends["b"]
    async with await two.open("a") as a, ILM.open(backend, letters.append, network.join("b"), message=Letter):
        for message_id in (3, 4, 10, 1000, 1001):
            await a.send(Letter("a", "b", message_id, b"x"))
        assert await a.send_to("b", b"y") == 1002
        for message_id in (1, 1002):
            with pytest.raises(MessageIdNotNew) as found:
                await a.send(Letter("a", "b", message_id, b"x"))
            assert (found.value.message_id, found.value.last) == (message_id, 1002)
        with pytest.raises(WrongSource):
            await a.send(Letter("b", "a", 2000, b"x"))
        await until(lambda: len(letters) == 6)
    assert [letter.message_id for letter in letters] == [3, 4, 10, 1000, 1001, 1002]
    assert all(type(letter) is Letter for letter in letters)
    a = await two.open("a")
    with pytest.raises(MessageIdNotNew):
        await a.send(Letter("a", "b", 1002, b"x"))
    assert await a.send_to("b", b"z") == 1003
    with pytest.raises(ShutdownTimedOut):
        await a.shutdown(0)


@scenario
async def test_what_cannot_be_sent_is_said_and_nothing_of_it_is_committed() -> None:
    two = Two()
    async with await two.open("a") as a:
        with pytest.raises(SendToSelf):
            await a.send_to("a", b"")
        for wrong in ("", -1, 1 << 64, 1.5, b"b", None):
            with pytest.raises(ValueError, match="cannot be the id of a peer"):
                await a.send_to(wrong, b"")  # type: ignore[arg-type]
        limit = two.transports["a"].max_frame_bytes - 52
        for size in (limit + 1, limit * 2):
            with pytest.raises(ContentsTooLarge) as found:
                await a.send_to("b", bytes(size))
            assert (found.value.size, found.value.limit) == (size, limit)
            with pytest.raises(ContentsTooLarge):
                await a.send_many("b", [b"fits", bytes(size)])
        with pytest.raises(TypeError):
            await a.send_to("b", "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await a.send_many("b", [b"bytes", 7])  # type: ignore[list-item]
        assert a.pending() == 0
        assert await a.send_many("b", []) == range(1, 1)
        assert await a.send_to("b", bytes(limit)) == 1
        assert await a.send_to("b", bytearray(b"changes")) == 2
        assert await a.send_to("b", memoryview(b"seen")) == 3
        async with await two.open("b"):
            await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [bytes(limit), b"changes", b"seen"]


@scenario
async def test_many_at_once_are_one_commit_however_many_frames_they_take() -> None:
    two = Two()
    several = [bytes([number]) * 30_000 for number in range(20)]
    async with await two.open("a") as a, await two.open("b"):
        before = len(two.backends["a"].commits)
        await a.send_many("b", several)
        assert len([one for one in two.backends["a"].commits[before:] if one.sends]) == 1
        await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == several
    assert max(len(frame) for _, frame in two.transports["a"].sent) <= 1 << 16


# ------------------------------------------------------------------------------------------------ faults
@scenario
async def test_faults_of_the_network_and_restarts_of_both_ends_change_nothing() -> None:
    two = Two(seed=7, loss=0.2, duplication=0.2, reordering=0.2, delay=(0.0, 0.003))
    options = {"window": 2000, "inbox_limit": 1 << 16}
    a, b = await two.open("a", **options), await two.open("b", **options)
    for part in range(5):
        for one in SEVERAL:
            await a.send_to("b", b"%d %s" % (part, one))
            await b.send_to("a", b"%d %s" % (part, one))
        wanted = 60 * (part + 1)
        while min(len(got.messages) for got in two.got.values()) < wanted:
            await asyncio.sleep(0.001)
        if part % 2:
            await kill(a)
            a = await two.open("a", **options)
        else:
            await kill(b)
            b = await two.open("b", **options)
    await until(lambda: a.pending() == b.pending() == 0)
    expected = [b"%d %s" % (part, one) for part in range(5) for one in SEVERAL]
    for got in two.got.values():
        # A target may run again for what was not committed when its process died; ids tell.
        assert [message.contents for message in {message.message_id: message for message in got.messages}.values()] == (
            expected
        )
    assert (a.problems(), b.problems()) == ({}, {})
    await a.shutdown(5)
    await b.shutdown(5)


@scenario
async def test_a_peer_that_comes_and_goes_gets_all() -> None:
    two = Two()
    async with await two.open("a") as a, await two.open("b") as b:
        for number in range(30):
            if number % 3 == 0:
                two.network.disconnect("b")
            elif number % 3 == 1:
                two.network.reconnect("b")
            await a.send_to("b", b"%d" % number)
            await asyncio.sleep(0)
        two.network.reconnect("b")
        await until(lambda: a.pending() == 0)
        assert b.problems() == {}
    assert two.got["b"].contents == [b"%d" % number for number in range(30)]


@scenario
async def test_a_transport_that_does_not_tell_of_connections_will_do() -> None:
    two = Two()
    opened = []
    for name in ("a", "b"):
        transport = Wrapped(two.network.join(name))
        transport.keep_in = lambda frame: not frame
        opened.append(await ILM.open(two.backends[name], two.got[name], transport, retry=(0.01, 0.1)))
    a, b = opened
    await a.send_to("b", b"1")
    await until(lambda: two.got["b"].contents == [b"1"])
    await a.shutdown(5)
    await b.shutdown(5)


@scenario
async def test_what_is_no_frame_is_reported_once_and_ignored() -> None:
    two = Two()
    async with await two.open("b") as b:
        stranger = two.network.join("a")
        for _ in range(3):
            await stranger.send_message("b", b"L\x09 what is this?")
        await until(lambda: two.problems["b"].found)
        assert [type(error) for error in b.problems()["a"]] == [WireError]
        await stranger.close()
        async with await two.open("a") as a:
            await a.send_to("b", b"1")
            await until(lambda: two.got["b"].messages)
        assert [(peer, type(error)) for peer, error in two.problems["b"].found] == [("a", WireError)]
        assert b.problems() == {}, "it was another connection"


@scenario
async def test_a_run_that_was_committed_when_frames_were_longer_is_sent_in_pieces() -> None:
    two = Two()
    several = [bytes([number]) * 300 for number in range(20)]
    a = await two.open("a")
    await a.send_many("b", several)
    await kill(a)
    a = await ILM.open(two.backends["a"], two.got["a"], two.network.join("a", max_frame_bytes=1024))
    b = await ILM.open(two.backends["b"], two.got["b"], two.network.join("b", max_frame_bytes=1024))
    await until(lambda: a.pending() == 0)
    await a.shutdown(1)
    await b.shutdown(1)
    assert two.got["b"].contents == several


# ------------------------------------------------------------------------------------------------ room
@scenario
async def test_a_full_outbox_makes_its_own_senders_wait() -> None:
    two = Two()
    other = Got()
    async with await two.open("a", outbox_limit=10_000) as a, ILM.open(MemoryBackend(), other, two.network.join("c")):
        sent = 0

        async def keep_sending() -> None:
            nonlocal sent
            for _ in range(100):
                await a.send_to("b", bytes(1000))
                sent += 1

        sending = asyncio.create_task(keep_sending())
        await until(lambda: sent == 10)
        await a.send_to("c", b"others do not wait")
        await until(lambda: other.messages)
        assert (sent, a.statistics()["b"].outbox_bytes) == (10, 10_120)
        async with await two.open("b"):
            await sending
            await until(lambda: a.pending() == 0)
    assert len(two.got["b"].messages) == 100


@scenario
async def test_room_that_was_taken_before_a_restart_counts() -> None:
    two = Two()
    a = await two.open("a", outbox_limit=5000)
    for _ in range(5):
        await a.send_to("b", bytes(1000))
    await kill(a)
    a = await two.open("a", outbox_limit=5000)
    sending = asyncio.create_task(a.send_to("b", bytes(1000)))
    await until(lambda: a._known["b"].outbox.room._waiters)
    assert a.pending() == 5
    async with await two.open("b"):
        await sending
        await until(lambda: a.pending() == 0)
    await a.shutdown()
    assert len(two.got["b"].messages) == 6


@scenario
async def test_a_send_that_is_cancelled_has_committed_nothing() -> None:
    two = Two()
    async with await two.open("a", outbox_limit=1000) as a:
        await a.send_to("b", bytes(1000))
        waiting = [asyncio.create_task(a.send_to("b", b"late")) for _ in range(3)]
        await until(lambda: len(a._known["b"].outbox.room._waiters) == 3)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        async with await two.open("b"):
            assert [await one for one in waiting[1:]] == [2, 3]
            await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [bytes(1000), b"late", b"late"]


@scenario
async def test_who_sends_without_end_lets_others_have_their_turn() -> None:
    two = Two()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with await two.open("a") as a:
        task = asyncio.create_task(other())
        for _ in range(facade.TURN * 10):
            await a.send_to("b", b"")
        task.cancel()
    assert turns >= 10


@scenario
async def test_what_has_arrived_and_is_not_delivered_is_bounded_whatever_the_peer_sends() -> None:
    two = Two()
    two.got["b"].open.clear()
    limit = 1 << 17
    async with await two.open("a", window=1 << 24) as a, await two.open("b", inbox_limit=limit) as b:
        for _ in range(500):
            await a.send_to("b", bytes(10_000))
        await until(lambda: a._known["b"].session.outbound.published == 500)
        seen = 0
        for _ in range(200):
            await asyncio.sleep(0)
            seen = max(seen, b.statistics()["a"].inbox_bytes)
        assert limit / 2 < seen <= limit
        two.got["b"].open.set()
        await until(lambda: a.pending() == 0)
    assert two.got["b"].ids == list(range(1, 501))


@scenario
async def test_storage_that_is_full_refuses_and_is_usable_again() -> None:
    two = Two()
    async with await two.open("a") as a, await two.open("b"):
        await a.send_to("b", b"1")
        two.backends["a"].refuse = full
        with pytest.raises(StorageFull):
            await a.send_to("b", b"no")
        with pytest.raises(StorageFull):
            await a.send_many("b", [b"no", b"no"])
        with pytest.raises(StorageFull):
            await a.send(ILMMessage("a", "b", 50, b"no"))
        two.backends["a"].refuse = lambda change: None
        assert await a.send_to("b", b"2") == 2
        await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [b"1", b"2"]
