"""The weak spots of the ancestor crate (Intersession Layer Messaging), one test each: with its behaviour it would fail.

The ancestor marks a message as received before it stores it; keeps what was delivered in memory only; remembers 1000
ids by the clock, whoever sent them; logs a delivery that failed and goes on with the next; has one message in flight
per peer, up to 200 ms after it was sent; clears its state after 10 blocked passes; ignores corrupt tracker state.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.errors import BackendFailed, ShutdownTimedOut
from persist.ilm.facade import ILM
from persist.ilm.message import ILMMessage
from persist.ilm.wire import Message, decode
from tests.persist.ilm.building import Got, Two, broken, counting, kill, no_timers, scenario, turns_until, until


@scenario
async def test_it_marks_a_message_as_received_before_it_is_stored() -> None:
    """A process that dies in between gets the message again, and does not take it for a duplicate."""
    two = Two()
    async with await two.open("a") as a:
        b = await two.open("b")
        await until(lambda: b._known and b._known["a"].session.greeted)
        two.backends["b"].refuse = broken
        await a.send_to("b", b"1")
        with pytest.raises(BackendFailed):
            await b.wait_closed()
        await kill(b)
        assert a.pending() == 1
        two.backends["b"].refuse = lambda change: None
        two.got["b"].messages.clear()
        async with await two.open("b"):
            await until(lambda: a.pending() == 0)
    assert two.got["b"].contents == [b"1"]


@scenario
async def test_its_delivered_set_is_in_memory_only() -> None:
    """What was delivered before a crash is not delivered again after it, though the sender sends it again."""
    two = Two()
    state: dict[str, ILM[ILMMessage]] = {}
    async with await two.open("a") as a:
        state["ilm"] = b = await two.open("b", counting(state))
        await until(lambda: b._known and b._known["a"].session.greeted)
        # The acknowledgements do not get through.
        two.transports["b"].keep_out = lambda frame: True
        await a.send_many("b", [b""] * 50)
        await until(lambda: b.get("count a") == b"50")
        await kill(b)
        assert a.pending() == 50
        state["ilm"] = b = await two.open("b", counting(state))
        await until(lambda: a.pending() == 0)
        assert b.get("count a") == b"50"
        await b.shutdown(1)


@scenario
async def test_its_dedupe_map_holds_a_thousand_entries() -> None:
    """Frames that come again long after, and after thousands of others, are still duplicates."""
    two = Two()
    async with await two.open("a") as a, await two.open("b") as b:
        await a.send_to("b", b"first")
        await until(lambda: a.pending() == 0)
        for _ in range(5):
            await a.send_many("b", [b""] * 1000)
        await until(lambda: a.pending() == 0)
        again = [frame for _, frame in two.transports["a"].sent if isinstance(decode(frame), Message)]
        for frame in again:
            await two.transports["a"].inner.send_message("b", frame)
        await a.send_to("b", b"last")
        await until(lambda: a.pending() == 0)
        assert b.problems() == {}
    assert two.got["b"].ids == list(range(1, 5003))


@scenario
async def test_its_inbound_uniqueness_ignores_the_source() -> None:
    """Two peers use the same ids."""
    two = Two()
    async with (
        await two.open("a") as a,
        await two.open("b"),
        ILM.open(MemoryBackend(), Got(), two.network.join("c")) as c,
    ):
        for message_id in (5, 6, 7):
            await a.send(ILMMessage("a", "b", message_id, b"from a"))
            await c.send(ILMMessage("c", "b", message_id, b"from c"))
        await until(lambda: a.pending() == c.pending() == 0)
    found = sorted((str(message.source_id), message.message_id) for message in two.got["b"].messages)
    assert found == [(source, message_id) for source in "ac" for message_id in (5, 6, 7)]


@scenario
async def test_it_logs_a_failed_delivery_and_the_next_message_goes_first() -> None:
    two = Two()
    got = two.got["b"]
    got.fail = lambda message: message.message_id == 2 and got.calls.count(2) < 5
    async with await two.open("a") as a, await two.open("b"):
        for number in range(1, 6):
            await a.send_to("b", b"%d" % number)
        await until(lambda: a.pending() == 0)
    assert got.contents == [b"1", b"2", b"3", b"4", b"5"]


@scenario
async def test_it_has_one_message_in_flight_per_peer() -> None:
    """A thousand are on their way before the first is acknowledged."""
    two = Two()
    two.got["b"].open.clear()
    async with await two.open("a") as a, await two.open("b"):
        for _ in range(1000):
            await a.send_to("b", b"")
        await until(lambda: a.statistics()["b"].unpublished == 0)
        assert a.statistics()["b"].acknowledged == 0
        two.got["b"].open.set()
        await until(lambda: a.pending() == 0)


@scenario
async def test_it_takes_up_to_200_ms_before_the_first_send() -> None:
    two = Two()
    async with await two.open("a") as a, await two.open("b"):
        await until(lambda: a.statistics().get("b") and a._known["b"].session.greeted)
        with no_timers():
            for number in range(1, 6):
                await a.send_to("b", b"")
                await turns_until(lambda: len(two.got["b"].messages) == number)  # noqa: B023


@scenario
async def test_it_clears_its_state_after_ten_blocked_passes() -> None:
    """A peer that is blocked for many times the retry interval loses nothing, and nothing arrives twice."""
    two = Two()
    async with await two.open("a", retry=(0.001, 0.002)) as a, await two.open("b", retry=(0.001, 0.002)):
        await a.send_to("b", b"0")
        await until(lambda: a.pending() == 0)
        passes = 0

        def blocked(frame: bytes) -> bool:
            nonlocal passes
            passes += 1
            return passes < 100

        two.transports["a"].keep_out = blocked
        for number in range(1, 20):
            await a.send_to("b", b"%d" % number)
        await until(lambda: a.pending() == 0)
        assert passes >= 100
    assert two.got["b"].contents == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ilm/local", b""),
        ("ilm/local", b"\x07\x01a"),
        ("ilm/local", b"\x01\x01a and more"),
        ("ilm/local", None),
        ("ilm/store", b"short"),
        ("ilm/store", bytes(8)),
        ("ilm/store", None),
        ("ilm/peer/sb/store", b"short"),
        ("ilm/peer/sb/store", None),
        ("ilm/peer/sb/offset", b"much too long"),
        ("ilm/peer/sb/reach", b""),
        ("ilm/peer/sb/own", b"1"),
    ],
)
def test_it_ignores_tracker_state_that_is_corrupt(key: str, value: bytes | None) -> None:
    """It is refused, and nothing is begun in its place."""

    @scenario
    async def play() -> None:
        two = Two()
        a, b = await two.open("a"), await two.open("b")
        await a.send_to("b", b"1")
        await b.send_to("a", b"2")
        await until(lambda: a.pending() == b.pending() == 0)
        await a.shutdown(1)
        await b.shutdown(1)
        values: dict[str, Any] = two.backends["a"]._values
        if value is None:
            del values[key]
        else:
            values[key] = value
        before = dict(values)
        with pytest.raises(BackendFailed):
            await two.open("a")
        await two.transports["a"].close()
        assert values == before

    play()


@scenario
async def test_its_blocked_sender_blocks_for_ever() -> None:
    """Whatever a peer does not acknowledge, shutdown ends when it was told to, and says what is pending."""
    two = Two()
    loop = asyncio.get_running_loop()
    took: list[float] = []
    for _ in range(3):
        a = await two.open("a")
        await a.send_to("b", b"")
        begin = loop.time()
        with pytest.raises(ShutdownTimedOut):
            await a.shutdown(0.05)
        took.append(loop.time() - begin)
    assert min(took) < 2, "the machine may let this process stand still, but not each time"
