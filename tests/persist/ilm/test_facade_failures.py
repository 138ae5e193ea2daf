"""What fails below ILM is said to everyone, and what follows a commit waits for it; peers that lost their state."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from persist.ilm import waiting
from persist.ilm.errors import (
    BackendFailed,
    BackendFailedBeforeSync,
    ClosedBeforeSync,
    DeliveryFailed,
    ILMBroken,
    ILMClosed,
    LostOwnState,
    NotKnownDurable,
    PeerLostState,
    ShutdownTimedOut,
    StorageFull,
    TransportFailed,
)
from persist.ilm.message import ILMMessage, PeerId
from persist.ilm.wire import Message, decode
from tests.persist.ilm.building import (
    FlakyBackend,
    PowerBackend,
    Two,
    broken,
    kill,
    scenario,
    until,
)

SEVERAL = [b"%d" % number for number in range(100)]


@pytest.fixture(autouse=True)
def nobody_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait looks again after some seconds, which would hide that nobody woke it: here none does."""
    monkeypatch.setattr(waiting, "LONGEST", 1e6)


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
async def test_at_level_power_no_peer_is_greeted_before_its_store_is_synced() -> None:
    """A store that is forgotten by a power loss would be taken for known by the peer."""
    two = Two()
    power = two.backends["a"] = PowerBackend()
    async with await two.open("a") as a:
        power.may_sync.clear()
        async with await two.open("b"):
            await until(lambda: a._known and a._known["b"].session.peer_store)
            for _ in range(50):
                await asyncio.sleep(0)
            assert {decode(frame).receiver for _, frame in two.transports["a"].sent} == {0}
            power.may_sync.set()
            await a.send_to("b", b"1")
            await until(lambda: a.pending() == 0)


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


@scenario
async def test_forgetting_goes_on_when_who_asked_for_it_is_cancelled() -> None:
    two = Two()
    power = two.backends["a"] = PowerBackend()
    async with await two.open("a") as a:
        await a.send_to("b", b"1")
        power.may_sync.clear()
        first, second = asyncio.create_task(a.forget("b")), asyncio.create_task(a.forget("b"))
        await until(lambda: a._known["b"].is_leaving)
        first.cancel()
        power.may_sync.set()
        assert [message.contents for message in await second] == [b"1"]
        async with await two.open("b"):
            assert await a.send_to("b", b"2") == 2
            await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [b"2"]


# ------------------------------------------------------------------------------------------------ no room to forget
def no_room(*_: object) -> None:
    raise StorageFull("what a test commits")


@scenario
async def test_forgetting_that_finds_no_room_changes_nothing() -> None:
    two = Two()
    async with await two.open("a") as a, await two.open("b") as b:
        await a.send_to("b", b"1")
        await until(lambda: a.pending() == 0)
        two.backends["a"].refuse = no_room
        with pytest.raises(StorageFull):
            await a.forget("b")
        two.backends["a"].refuse = lambda change: None
        assert await a.send_to("b", b"2") == 2
        await b.send_to("a", b"3")
        await until(lambda: a.pending() == b.pending() == 0)
        assert not b.problems()
        assert await a.forget("b") == []
    assert two.got["b"].contents == [b"1", b"2"]
    assert two.got["a"].contents == [b"3"]


@scenario
async def test_a_delivery_goes_on_where_it_was_when_forgetting_changed_nothing() -> None:
    """One frame of three, the target is in the second."""
    two = Two()
    gate = asyncio.Event()
    calls: list[bytes] = []

    async def deliver(message: ILMMessage) -> None:
        calls.append(message.contents)
        if message.contents == b"2":
            await gate.wait()

    async with await two.open("a", deliver) as a, await two.open("b") as b:
        await b.send_many("a", [b"1", b"2", b"3"])
        await until(lambda: b"2" in calls)
        two.backends["a"].refuse = lambda change: no_room() if not change.consumed else None
        with pytest.raises(StorageFull):
            await a.forget("b")
        two.backends["a"].refuse = lambda change: None
        gate.set()
        await until(lambda: b.pending() == 0)
    assert calls == [b"1", b"2", b"2", b"3"]


@pytest.mark.parametrize("where", ["drop", "last commit"])
@scenario
async def test_forgetting_that_finds_no_room_later_is_finished_by_another(where: str) -> None:
    two = Two()
    flaky = two.backends["a"]
    async with await two.open("a", outbox_limit=10) as a:
        await a.send_to("b", b"1")
        waiting = asyncio.create_task(a.send_to("b", b"waits"))
        await until(lambda: a._known["b"].outbox.room._waiters)
        if where == "drop":
            flaky.forget = no_room  # type: ignore[method-assign,assignment]
        else:
            flaky.refuse = lambda change: no_room() if (b"1" not in dict(change.values).values()) else None
        with pytest.raises(StorageFull):
            await a.forget("b")
        with pytest.raises(StorageFull):
            await waiting
        with pytest.raises(StorageFull):
            await a.send_to("b", b"no")
        assert [type(error) for error in a.problems()["b"]] == [StorageFull]
        assert await a.send_to("c", b"others") == 1 if where == "drop" else True
        flaky.__dict__.pop("forget", None)
        flaky.refuse = lambda change: None
        assert await a.forget("b") == [ILMMessage("a", "b", 1, b"1")]
        assert not a.problems()
        assert await a.send_to("b", b"2") == 2
        async with await two.open("b"):
            await until(lambda: a.pending("b") == 0)
    assert two.got["b"].contents == [b"2"]


@scenario
async def test_forgetting_that_found_no_room_is_finished_by_an_opening_with_room() -> None:
    two = Two()
    flaky = two.backends["a"]
    a = await two.open("a")
    await a.send_to("b", b"1")
    flaky.forget = no_room  # type: ignore[method-assign,assignment]
    with pytest.raises(StorageFull):
        await a.forget("b")
    with pytest.raises(ShutdownTimedOut):
        await a.shutdown()
    with pytest.raises(StorageFull):
        await two.open("a")
    await two.transports["a"].close()
    del flaky.forget
    async with await two.open("a") as a:
        assert a.pending() == 0
        assert await a.send_to("b", b"2") == 2


# ------------------------------------------------------------------------------------------------ tasks that die
class Outcome(BaseException):
    """As test runners have them."""


@scenario
async def test_a_target_that_raises_what_is_no_exception_is_noticed() -> None:
    two = Two()

    def deliver(message: ILMMessage) -> None:
        raise Outcome("of a test")

    async with await two.open("a") as a:
        b = await two.open("b", deliver)
        await a.send_to("b", b"1")
        with pytest.raises(ILMBroken, match="deliver from 'a': Outcome: of a test"):
            await b.wait_closed()
        with pytest.raises(ILMBroken, match="Outcome"):
            await b.shutdown()
        assert two.problems["b"].kinds() == [ILMBroken]


@scenario
async def test_tasks_that_someone_else_cancels_are_noticed() -> None:
    two = Two()
    a = await two.open("a")
    await a.send_to("b", b"1")
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    with pytest.raises(ILMBroken, match="someone else cancelled"):
        await a.shutdown()
    async with await two.open("a") as a:
        assert a.pending() == 1


# ------------------------------------------------------------------------------------------------ committed, not synced
@scenario
async def test_a_call_that_ends_before_its_sync_says_that_it_has_committed() -> None:
    two = Two()
    power = two.backends["a"] = PowerBackend()
    a = await two.open("a")
    power.may_sync.clear()
    sends = [
        asyncio.create_task(a.send_to("b", b"1")),
        asyncio.create_task(a.send_many("b", [b"2", b"3"])),
        asyncio.create_task(a.send(ILMMessage("a", "b", 9, b"4"))),
        asyncio.create_task(a.put("key", b"5")),
    ]
    await until(lambda: a.pending() == 4 and a.get("key"))
    with pytest.raises(ShutdownTimedOut):
        await a.shutdown(0)
    found = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(one) for one in found] == [ClosedBeforeSync] * 4
    assert all(isinstance(one, ILMClosed) and isinstance(one, NotKnownDurable) for one in found)
    assert "do not give it again" in str(pickle.loads(pickle.dumps(found[0])))
    with pytest.raises(ILMClosed) as late:
        await a.send_to("b", b"none of it")
    assert not isinstance(late.value, NotKnownDurable)
    power.may_sync.set()
    async with await two.open("a") as a:
        assert a.pending() == 4


@scenario
async def test_a_call_whose_sync_fails_says_that_it_has_committed() -> None:
    two = Two()
    power = two.backends["a"] = PowerBackend()
    a = await two.open("a")

    async def fails() -> None:
        raise OSError("no sync")

    power.sync = fails  # type: ignore[method-assign]
    with pytest.raises(BackendFailedBeforeSync, match=r"no sync.*do not give it again"):
        await a.send_to("b", b"1")
    with pytest.raises(BackendFailed) as late:
        await a.send_to("b", b"2")
    assert not isinstance(late.value, NotKnownDurable)
    with pytest.raises(BackendFailed) as end:
        await a.shutdown()
    assert not isinstance(end.value, NotKnownDurable)


def test_errors_say_what_to_do() -> None:
    for lost in (PeerLostState("b", "store", 1, 2), LostOwnState("b", "store", 1, 2)):
        assert "forget('b') here" in str(lost)
        assert "there" in str(lost).partition("forget('b') here")[2]
    failed = str(DeliveryFailed("b", 1, 10, "OSError: no"))
    assert "retry('b')" in failed
    assert "forget('b')" in failed
