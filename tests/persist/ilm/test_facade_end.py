"""Values and effects; how an ILM is opened, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

from persist.ilm import peerings as peerings_module
from persist.ilm.backend import Change
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.delivery import Effects
from persist.ilm.errors import (
    BackendInUse,
    DeliveryFailed,
    ILMClosed,
    ShutdownInDelivery,
    ShutdownTimedOut,
    WrongBackend,
)
from persist.ilm.facade import ILM
from persist.ilm.memory_network import MemoryNetwork
from persist.ilm.message import ILMMessage
from tests.persist.ilm.building import (
    DEADLINE,
    FlakyBackend,
    Got,
    Two,
    Wrapped,
    counting,
    kill,
    scenario,
    until,
)

SEVERAL = [b"%d" % number for number in range(100)]


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
    commits = deaths = 0

    def die_each_other_time(change: Change) -> None:
        nonlocal commits, deaths
        if change.consumed:
            commits += 1
            if commits % 2 == 0:
                deaths += 1
                raise OSError("killed")

    two.backends["b"].refuse = die_each_other_time
    async with await two.open("a") as a:
        await a.send_many("b", SEVERAL)
        while a.pending():
            state["ilm"] = b = await two.open("b", counting(state), batch=10)
            while b._peerings.failure is None and a.pending():
                await asyncio.sleep(0.001)
            await kill(b)
    async with await two.open("b", counting(state)) as b:
        assert b.get("count a") == b"100"
    assert deaths >= 9


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


def test_what_ilm_open_cannot_take_is_refused() -> None:
    async def on_problem(peer: object, error: Exception) -> None: ...

    class OnProblem:
        async def __call__(self, peer: object, error: Exception) -> None: ...

    backend, transport = MemoryBackend(), MemoryNetwork().join("a")
    for coroutine in (on_problem, OnProblem()):
        with pytest.raises(TypeError, match=r"on_problem .*give a plain function"):
            ILM.open(backend, Got(), transport, on_problem=coroutine)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ILM\.open has no option windows: give .*window"):
        ILM.open(backend, Got(), transport, windows=5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"ILM\.open: deliver is None: give a function"):
        ILM.open(backend, None, transport)  # type: ignore[call-overload]


@scenario
async def test_a_transport_with_frames_too_short_is_refused() -> None:
    class Narrow(Wrapped):
        max_frame_bytes = 1023

    backend, network = MemoryBackend(), MemoryNetwork()
    with pytest.raises(ValueError, match=r"max_frame_bytes is 1023: give .* 1024"):
        await ILM.open(backend, Got(), Narrow(network.join("a")))
    Narrow.max_frame_bytes = 1024
    async with ILM.open(backend, Got(), Narrow(network.join("b"))) as ilm:
        assert ilm.pending() == 0


@scenario
async def test_shutdown_within_a_delivery_is_refused_and_as_a_task_it_is_not() -> None:
    two = Two()
    state: dict[str, ILM[ILMMessage]] = {}
    found: list[BaseException] = []
    ending: list[asyncio.Task[None]] = []

    async def deliver(message: ILMMessage) -> None:
        try:
            async with asyncio.timeout(1):
                await state["ilm"].shutdown()
        except (ShutdownInDelivery, TimeoutError) as error:
            found.append(error)
        ending.append(asyncio.create_task(state["ilm"].shutdown()))

    async with await two.open("a") as a:
        state["ilm"] = await two.open("b", deliver)
        await a.send_to("b", b"quit")
        await until(lambda: ending)
        await ending[0]
        await until(lambda: a.pending() == 0)
    assert [type(error) for error in found] == [ShutdownInDelivery]
    assert "create_task" in str(found[0])


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
async def test_shutdown_acknowledges_what_was_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acknowledgement is on its way when it begins."""
    monkeypatch.setattr(peerings_module, "LAST_WORDS", DEADLINE)
    two = Two()
    async with await two.open("a") as a:
        b = await two.open("b")
        await until(lambda: b._known and b._known["a"].session.greeted)
        two.transports["b"].open.clear()
        await a.send_many("b", SEVERAL)
        await until(lambda: len(two.got["b"].messages) == 100)
        assert a.pending() == 100
        ending = asyncio.create_task(b.shutdown(0))
        await until(lambda: b._known["a"].delivery._stopping)
        two.transports["b"].open.set()
        await ending
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


@scenario
async def test_shutdown_ends_though_a_target_does_not_let_itself_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peerings_module, "LONGEST", 0.05)
    two = Two()
    gate = asyncio.Event()
    stubborn: list[asyncio.Task[object] | None] = []

    async def deliver(message: ILMMessage) -> None:
        stubborn.append(asyncio.current_task())
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    async with await two.open("a") as a:
        b = await two.open("b", deliver)
        await a.send_to("b", b"")
        await until(lambda: stubborn)
        await b.shutdown(0)
        gate.set()
        assert stubborn[0] is not None
        await asyncio.wait([stubborn[0]])
        assert a.pending() == 1, "it came too late to count"
