"""ILM as its users see it: what is sent arrives, once and in order; what cannot be done is said."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from persist import ilm as ilm_module
from persist.backend_memory import MemoryBackend
from persist.delivery import Effects
from persist.ilm import ILM
from persist.ilm_errors import (
    BackendFailed,
    BackendInUse,
    ContentsTooLarge,
    DeliveryFailed,
    ILMBroken,
    ILMClosed,
    LostOwnState,
    MessageIdNotNew,
    PeerLostState,
    SendToSelf,
    ShutdownTimedOut,
    StorageFull,
    TransportFailed,
    WireError,
    WrongBackend,
    WrongSource,
)
from persist.message import ILMMessage, PeerId
from persist.wire import Message, decode
from tests.persist.ilm_building import (
    FlakyBackend,
    Got,
    PowerBackend,
    Two,
    Wrapped,
    broken,
    counting,
    full,
    kill,
    scenario,
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
        took = []
        for number in range(20):
            begin = time.perf_counter()
            await a.send_to("b", b"")
            while len(two.got["b"].messages) == number:
                await asyncio.sleep(0)
            took.append(time.perf_counter() - begin)
    assert sorted(took)[10] < 0.005


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
        await stranger.close()
        async with await two.open("a") as a:
            await a.send_to("b", b"1")
            await until(lambda: two.got["b"].messages)
        assert [(peer, type(error)) for peer, error in two.problems["b"].found] == [("a", WireError)]
        assert [type(error) for error in b.problems()["a"]] == [WireError]


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
        for _ in range(ilm_module.TURN * 10):
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


# ------------------------------------------------------------------------------------------------ durability
@scenario
async def test_at_level_power_nothing_is_published_before_it_is_synced() -> None:
    two = Two()
    power = two.backends["a"] = PowerBackend()
    async with await two.open("a") as a, await two.open("b"):
        await until(lambda: a._known and a._known["b"].session.greeted and not a._known["b"].held)
        power.may_sync.clear()
        sends = [asyncio.create_task(a.send_to("b", one)) for one in SEVERAL[:10]]
        await until(lambda: a.pending() == 10)
        syncs = power.syncs
        for _ in range(50):
            await asyncio.sleep(0)
        assert not any(isinstance(decode(frame), Message) for _, frame in two.transports["a"].sent)
        assert not any(one.done() for one in sends)
        sends[3].cancel()
        power.may_sync.set()
        await asyncio.gather(*sends, return_exceptions=True)
        assert power.syncs <= syncs + 2, "those who wait share a sync"
        await until(lambda: a.pending() == 0)
    # The fourth was committed when it was cancelled: it is sent like the others.
    assert two.got["b"].contents == SEVERAL[:10]


@scenario
async def test_at_level_power_nothing_is_acknowledged_before_it_is_synced() -> None:
    two = Two()
    power = two.backends["b"] = PowerBackend()
    async with await two.open("a") as a, await two.open("b") as b:
        await until(lambda: b._known and b._known["a"].session.greeted and not b._known["a"].held)
        power.may_sync.clear()
        await a.send_many("b", SEVERAL)
        await until(lambda: len(two.got["b"].messages) == 100)
        for _ in range(50):
            await asyncio.sleep(0)
        assert a.pending() == 100
        power.may_sync.set()
        await until(lambda: a.pending() == 0)


@scenario
async def test_a_sync_that_fails_is_said_to_all_who_wait() -> None:
    two = Two()
    power = two.backends["a"] = PowerBackend()
    a = await two.open("a")
    power.may_sync.clear()
    sends = [asyncio.create_task(a.send_to("b", b"")) for _ in range(3)]
    await until(lambda: a.pending() == 3)

    async def fails() -> None:
        raise OSError("no sync")

    power.sync = fails  # type: ignore[method-assign]
    power.may_sync.set()
    first, *others = await asyncio.gather(*sends, return_exceptions=True)
    late = asyncio.create_task(a.send_to("b", b""))
    found = await asyncio.gather(late, return_exceptions=True)
    assert all(one is None or isinstance(one, (int, BackendFailed)) for one in [first, *others])
    assert isinstance(found[0], BackendFailed)
    with pytest.raises(BackendFailed, match="no sync"):
        await a.shutdown()


# ------------------------------------------------------------------------------------------------ what fails inside
@scenario
async def test_a_backend_that_fails_ends_it_for_everyone() -> None:
    two = Two()
    a = await two.open("a", outbox_limit=1000)
    await a.send_to("b", bytes(1000))
    waiting = asyncio.create_task(a.send_to("b", b"waits"))
    closing = asyncio.create_task(a.wait_closed())
    await until(lambda: a._known["b"].outbox.room._waiters)
    two.backends["a"].refuse = broken
    with pytest.raises(BackendFailed, match="the disk is gone"):
        await a.send_to("c", b"")
    for task in (waiting, closing):
        with pytest.raises(BackendFailed):
            await task
    for call in (a.send_to("b", b""), a.send_many("b", [b""]), a.put("key", b""), a.forget("b"), a.wait_closed()):
        with pytest.raises(BackendFailed):
            await call
    with pytest.raises(BackendFailed):
        await a.shutdown()
    assert two.problems["a"].kinds() == [BackendFailed]
    assert a.pending("b") == 1


@scenario
async def test_a_backend_that_fails_in_a_delivery_acknowledges_nothing() -> None:
    two = Two()
    async with await two.open("a") as a:
        b = await two.open("b")
        await until(lambda: b._known and b._known["a"].session.greeted)
        two.backends["b"].refuse = broken
        await a.send_to("b", b"1")
        with pytest.raises(BackendFailed):
            await b.wait_closed()
        with pytest.raises(BackendFailed):
            await b.shutdown()
        assert a.pending() == 1
        two.backends["b"].refuse = lambda change: None
        async with await two.open("b"):
            await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [b"1", b"1"], "the target ran, and the process died before the commit"


@scenario
async def test_a_transport_that_fails_ends_it() -> None:
    two = Two()
    a = await two.open("a")
    await until(lambda: not two.transports["a"].fail)
    two.transports["a"].fail = OSError("no route")
    async with await two.open("b"):
        with pytest.raises(TransportFailed, match="no route"):
            await a.wait_closed()
    with pytest.raises(TransportFailed):
        await a.shutdown()


@scenario
async def test_a_transport_that_someone_else_closes_is_a_failure() -> None:
    two = Two()
    a = await two.open("a")
    await two.transports["a"].close()
    with pytest.raises(TransportFailed):
        await a.wait_closed()
    with pytest.raises(ILMBroken):
        await a.send_to("b", b"")
    with pytest.raises(TransportFailed):
        await a.shutdown()


@scenario
async def test_an_on_problem_that_fails_does_no_harm() -> None:
    two = Two()

    def bad(peer: PeerId | None, error: Exception) -> None:
        raise RuntimeError("on_problem")

    two.got["b"].fail = lambda message: message.message_id == 1 and len(two.got["b"].calls) < 4
    async with await two.open("a") as a, await two.open("b", delivery_attempts=2, on_problem=bad) as b:
        await a.send_to("b", b"1")
        await until(lambda: b.problems())
        b.retry("a")
        await until(lambda: a.pending() == 0)


# ------------------------------------------------------------------------------------------------ values
@scenario
async def test_values_are_put_seen_and_removed() -> None:
    two = Two()
    async with await two.open("a") as a:
        assert a.get("key") is None
        await a.put("key", b"1")
        await a.put("ilm/store", b"the user's")
        assert (a.get("key"), a.get("ilm/store")) == (b"1", b"the user's")
        await a.put("key", None)
        assert a.get("key") is None
        with pytest.raises(TypeError):
            await a.put("key", "text")  # type: ignore[arg-type]
    async with await two.open("a") as a:
        assert (a.get("key"), a.get("ilm/store")) == (None, b"the user's")


@scenario
async def test_effects_happen_once_whatever_dies() -> None:
    """The target counts in a value; its process dies again and again between the target and the commit."""
    two = Two()
    state: dict[str, ILM[ILMMessage]] = {}
    deaths = 0

    def die_sometimes(change: object) -> None:
        nonlocal deaths
        if getattr(change, "consumed", ()):
            deaths += 1
            if deaths % 2:
                raise OSError("killed")

    async with await two.open("a") as a:
        await a.send_many("b", SEVERAL)
        two.backends["b"].refuse = die_sometimes
        while a.pending():
            state["ilm"] = await two.open("b", counting(state), batch=10)
            with pytest.raises(BackendFailed):
                await state["ilm"].wait_closed() if deaths < 9 else await until_done(a, state["ilm"])
            await kill(state["ilm"])
            if deaths >= 9:
                two.backends["b"].refuse = lambda change: None
    async with await two.open("b", counting(state)) as b:
        assert b.get("count a") == b"100"
    assert deaths >= 9


async def until_done(a: ILM[ILMMessage], b: ILM[ILMMessage]) -> None:
    await until(lambda: a.pending() == 0)
    raise BackendFailed("done")


@scenario
async def test_effects_of_many_peers_on_one_value_do_not_get_lost() -> None:
    two = Two()
    state: dict[str, ILM[ILMMessage]] = {}

    def count(message: ILMMessage) -> Effects:
        return Effects(put={"all": b"%d" % (int(state["ilm"].get("all") or b"0") + 1)})

    async with await two.open("b", count, batch=7) as b:
        state["ilm"] = b
        peers = [await ILM.open(MemoryBackend(), Got(), two.network.join(number)) for number in range(5)]
        for _ in range(40):
            for peer in peers:
                await peer.send_to("b", b"")
        await until(lambda: not any(peer.pending() for peer in peers))
        assert b.get("all") == b"200"
        for peer in peers:
            await peer.shutdown(1)


@scenario
async def test_effects_send_with_the_message() -> None:
    two = Two()

    def answer(message: ILMMessage) -> Effects:
        return Effects(send=[("a", b"re: " + message.contents), ("c", b"copy")])

    async with await two.open("a") as a, await two.open("b", answer) as b:
        await a.send_many("b", SEVERAL)
        await until(lambda: len(two.got["a"].messages) == 100)
        assert b.pending("c") == 100
        assert two.got["a"].contents == [b"re: " + one for one in SEVERAL]
        (first, *_) = [change for change in two.backends["b"].commits if change.consumed]
        assert {peer for peer, _ in first.sends} == {"a", "c"}


# ------------------------------------------------------------------------------------------------ lost state
@scenario
async def test_a_peer_that_lost_its_state_is_reported_and_not_talked_to() -> None:
    two = Two()
    a, b = await two.open("a"), await two.open("b")
    await a.send_to("b", b"1")
    await until(lambda: a.pending() == 0)
    await kill(b)
    await a.send_many("b", [b"2", b"3"])
    two.backends["b"] = FlakyBackend()
    b = await two.open("b")
    await until(lambda: a.problems() and b.problems())
    assert [type(error) for error in a.problems()["b"]] == [PeerLostState]
    assert [type(error) for error in b.problems()["a"]] == [LostOwnState]
    with pytest.raises(PeerLostState):
        await a.send_to("b", b"no")
    with pytest.raises(LostOwnState):
        await b.send_to("a", b"no")
    assert two.problems["a"].kinds() == [PeerLostState]
    assert two.got["b"].contents == [b"1"]
    # The one who remembers decides; the other one has nothing to forget.
    assert await a.forget("b") == [ILMMessage("a", "b", 2, b"2"), ILMMessage("a", "b", 3, b"3")]
    await until(lambda: not b.problems())
    assert await a.send_to("b", b"4") == 4, "ids go on"
    await b.send_to("a", b"5")
    await until(lambda: a.pending() == b.pending() == 0)
    assert two.got["b"].contents == [b"1", b"4"]
    await a.shutdown(1)
    await b.shutdown(1)


@scenario
async def test_to_forget_is_a_loss_of_state_to_the_peer() -> None:
    two = Two()
    a, b = await two.open("a"), await two.open("b")
    await a.send_to("b", b"1")
    await until(lambda: a.pending() == 0)
    assert await a.forget("b") == []
    await a.send_to("b", b"2")
    await until(lambda: b.problems())
    assert two.got["b"].contents == [b"1"], "nothing is mistaken for what was there before"
    assert await b.forget("a") == []
    await until(lambda: a.pending() == 0)
    assert two.got["b"].ids == [1, 2]
    await a.shutdown(1)
    await b.shutdown(1)


@scenario
async def test_forgetting_that_was_interrupted_is_finished_by_the_next_opening() -> None:
    two = Two()
    a, b = await two.open("a"), await two.open("b")
    await a.send_to("b", b"1")
    await until(lambda: a.pending() == 0)
    two.backends["a"].forget = broken  # type: ignore[assignment]
    with pytest.raises(BackendFailed):
        await a.forget("b")
    with pytest.raises(BackendFailed):
        await a.shutdown()
    del two.backends["a"].forget
    a = await two.open("a")
    assert a.pending() == 0
    assert await a.send_to("b", b"2") == 2
    await until(lambda: b.problems())
    await b.forget("a")
    await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [b"1", b"2"]
    await a.shutdown(1)
    await b.shutdown(1)


@scenario
async def test_senders_wait_while_a_peer_is_being_forgotten() -> None:
    two = Two()
    power = two.backends["a"] = PowerBackend()
    async with await two.open("a") as a:
        await a.send_to("b", b"1")
        power.may_sync.clear()
        forgetting = asyncio.create_task(a.forget("b"))
        await until(lambda: a._known["b"].is_leaving)
        sending = asyncio.create_task(a.send_to("b", b"2"))
        await until(lambda: a._known["b"].outbox.room._waiters)
        power.may_sync.set()
        assert [message.contents for message in await forgetting] == [b"1"]
        assert await sending == 2
        async with await two.open("b"):
            await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [b"2"]


# ------------------------------------------------------------------------------------------------ opening and the end
@scenario
async def test_a_backend_belongs_to_one_peer_and_one_ilm() -> None:
    two = Two()
    a = await two.open("a")
    with pytest.raises(BackendInUse):
        await ILM.open(two.backends["a"], two.got["a"], two.network.join("other"))
    await a.shutdown()
    c = two.network.join("c")
    with pytest.raises(WrongBackend) as found:
        await ILM.open(two.backends["a"], two.got["a"], c)
    assert (found.value.expected, found.value.found) == ("c", "a")
    async with await two.open("a"):
        pass  # the failed openings left it closed


@pytest.mark.parametrize(
    "options",
    [
        {"window": 0},
        {"outbox_limit": 0},
        {"batch": 0},
        {"retry": (0, 1)},
        {"delivery_retry": (2, 1)},
        {"inbox_limit": 10},
        {"delivery_attempts": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give"):
        ILM.open(MemoryBackend(), lambda message: None, None, **options)  # type: ignore[call-overload]


@scenario
async def test_shutdown_waits_for_acknowledgements() -> None:
    two = Two()
    two.got["b"].open.clear()
    a, b = await two.open("a"), await two.open("b")
    await a.send_many("b", SEVERAL)
    ending = asyncio.create_task(a.shutdown())
    await until(lambda: a._is_shutting_down)
    with pytest.raises(ILMClosed):
        await a.send_to("b", b"no")
    two.got["b"].open.set()
    await ending
    await a.shutdown()
    await a.wait_closed()
    assert two.got["b"].contents == SEVERAL
    await b.shutdown(1)
    with pytest.raises(ILMClosed):
        b.get("key")


@scenario
async def test_shutdown_says_what_is_pending_and_keeps_it() -> None:
    two = Two()
    a = await two.open("a")
    await a.send_many("b", SEVERAL)
    await a.send_to(5, b"")
    with pytest.raises(ShutdownTimedOut) as found:
        await a.shutdown(0.01)
    assert found.value.pending == {"b": 100, 5: 1}
    a = await two.open("a")
    async with await two.open("b"):
        await until(lambda: a.pending("b") == 0)
    async with a:
        pass
    assert two.got["b"].contents == SEVERAL


@scenario
async def test_shutdown_that_is_cancelled_closes_all_the_same() -> None:
    two = Two()
    a = await two.open("a")
    await a.send_to("b", b"")
    ending = asyncio.create_task(a.shutdown())
    await until(lambda: a._is_shutting_down)
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    async with await two.open("a") as again:
        assert again.pending() == 1


@scenario
async def test_shutdown_lets_senders_go_who_wait_for_room() -> None:
    two = Two()
    a = await two.open("a", outbox_limit=100)
    await a.send_to("b", bytes(100))
    waiting = asyncio.create_task(a.send_to("b", b""))
    await until(lambda: a._known["b"].outbox.room._waiters)
    with pytest.raises(ShutdownTimedOut):
        await a.shutdown(0)
    with pytest.raises(ILMClosed):
        await waiting


@scenario
async def test_shutdown_acknowledges_what_was_delivered() -> None:
    two = Two()
    async with await two.open("a") as a:
        b = await two.open("b", batch=1000)
        await a.send_many("b", SEVERAL)
        await until(lambda: len(two.got["b"].messages) == 100)
        await b.shutdown(0)
        await until(lambda: a.pending() == 0)


@scenario
async def test_shutdown_does_not_wait_for_a_peer_with_a_problem() -> None:
    two = Two()
    a, b = await two.open("a"), await two.open("b")
    await a.send_to("b", b"1")
    await until(lambda: a.pending() == 0)
    await kill(b)
    await a.send_to("b", b"2")
    two.backends["b"] = FlakyBackend()
    b = await two.open("b")
    await until(lambda: a.problems())
    with pytest.raises(ShutdownTimedOut):
        await a.shutdown()
    await b.shutdown(1)


@scenario
async def test_a_delivery_that_failed_is_said_at_the_end_if_nobody_was_told() -> None:
    two = Two()
    two.got["b"].fail = lambda message: True
    async with await two.open("a") as a:
        b = await ILM.open(
            two.backends["b"], two.got["b"], two.network.join("b"), delivery_attempts=1, retry=(0.01, 0.1)
        )
        await a.send_to("b", b"1")
        await until(lambda: b.problems())
        with pytest.raises(DeliveryFailed):
            await b.shutdown(1)
