"""The delivery target: in order, retried, acknowledged when it has returned; what it wants happens with the message."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.delivery import Effects
from persist.ilm.errors import DeliveryFailed, ShutdownTimedOut, StorageFull
from persist.ilm.facade import ILM
from persist.ilm.message import ILMMessage
from tests.persist.ilm.building import Got, Two, full, kill, scenario, until

SEVERAL = [b"%d" % number for number in range(10)]


@scenario
async def test_a_message_is_acknowledged_only_when_the_target_has_returned() -> None:
    two = Two()
    two.got["b"].open.clear()
    async with await two.open("a") as a, await two.open("b"):
        await a.send_to("b", b"1")
        await until(lambda: two.got["b"].calls)
        for _ in range(50):
            await asyncio.sleep(0)
        assert a.pending() == 1
        two.got["b"].open.set()
        await until(lambda: a.pending() == 0)


@scenario
async def test_peers_do_not_wait_for_each_other() -> None:
    two = Two()
    gate = asyncio.Event()
    got: list[Any] = []

    async def deliver(message: ILMMessage) -> None:
        if message.source_id == "a":
            await gate.wait()
        got.append(message.source_id)

    async with (
        await two.open("a") as a,
        await two.open("b", deliver),
        ILM.open(MemoryBackend(), Got(), two.network.join("c")) as c,
    ):
        await a.send_to("b", b"")
        await c.send_many("b", SEVERAL)
        await until(lambda: c.pending() == 0)
        assert got == ["c"] * 10
        gate.set()
        await until(lambda: a.pending() == 0)


@scenario
async def test_what_is_done_is_committed_while_the_next_one_takes_its_time() -> None:
    two = Two()
    gate = asyncio.Event()

    async def deliver(message: ILMMessage) -> None:
        if message.contents == b"9":
            await gate.wait()

    async with await two.open("a") as a, await two.open("b", deliver):
        await a.send_many("b", SEVERAL)
        await until(lambda: a.pending() == 1)
        gate.set()
        await until(lambda: a.pending() == 0)


@scenario
async def test_many_messages_are_one_commit_but_not_more_than_a_batch() -> None:
    two = Two()
    async with await two.open("a") as a, await two.open("b", lambda message: None, batch=100):
        await a.send_many("b", [b""] * 1000)
        await until(lambda: a.pending() == 0)
        consumed = [dict(change.consumed)["a"] for change in two.backends["b"].commits if change.consumed]
    assert consumed == sorted(consumed)
    assert 10 <= len(consumed) <= 20
    assert max(after - before for before, after in zip([0, *consumed], consumed, strict=False)) == 100


@scenario
async def test_nothing_goes_before_a_message_that_fails() -> None:
    two = Two()
    got = two.got["b"]
    got.fail = lambda message: message.message_id == 4 and got.calls.count(4) < 4
    async with await two.open("a") as a, await two.open("b"):
        await a.send_many("b", SEVERAL)
        await until(lambda: got.calls.count(4) == 2)
        await until(lambda: a.pending() <= 7)
        assert a.pending() == 7, "what came before it is acknowledged"
        await until(lambda: a.pending() == 0)
    assert got.calls == [1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 9, 10]
    assert got.contents == SEVERAL


@scenario
async def test_it_is_tried_again_after_delays_that_double() -> None:
    two = Two()
    at: list[float] = []

    def deliver(message: ILMMessage) -> None:
        at.append(time.perf_counter())
        if len(at) < 5:
            raise OSError("not yet")

    async with await two.open("a") as a, await two.open("b", deliver, delivery_retry=(0.02, 0.08)):
        await a.send_to("b", b"")
        await until(lambda: a.pending() == 0)
    gaps = [after - before for before, after in pairwise(at)]
    assert all(gap >= least for gap, least in zip(gaps, (0.02, 0.04, 0.08, 0.08), strict=True)), gaps


@scenario
async def test_after_the_limit_the_peer_rests_until_it_is_told_to_try_again() -> None:
    two = Two()
    got = two.got["b"]
    broken = True
    got.fail = lambda message: broken and message.message_id == 2
    async with (
        await two.open("a") as a,
        await two.open("b", delivery_attempts=3) as b,
        ILM.open(MemoryBackend(), Got(), two.network.join("c")) as c,
    ):
        await a.send_many("b", SEVERAL)
        await until(lambda: b.problems())
        (problem,) = b.problems()["a"]
        assert isinstance(problem, DeliveryFailed)
        assert (problem.peer, problem.message_id, problem.attempts, problem.cause) == ("a", 2, 3, "OSError: no 2")
        assert two.problems["b"].found == [("a", problem)]
        assert got.calls == [1, 2, 2, 2]
        await c.send_to("b", b"others go on")
        await until(lambda: c.pending() == 0)
        b.retry("a")
        await until(lambda: len(two.problems["b"].found) == 2)
        assert got.calls == [1, 2, 2, 2, 1, 2, 2, 2]
        broken = False
        b.retry("a")
        await until(lambda: a.pending() == 0)
        assert b.problems() == {}
    assert [message.contents for message in got.messages if message.source_id == "a"] == SEVERAL


@scenario
async def test_a_message_that_fails_is_still_the_next_one_after_a_restart() -> None:
    two = Two()
    got = two.got["b"]
    got.fail = lambda message: message.message_id == 3
    async with await two.open("a") as a:
        b = await two.open("b", delivery_attempts=2)
        await a.send_many("b", SEVERAL)
        await until(lambda: b.problems())
        await kill(b)
        got.fail = lambda message: False
        async with await two.open("b"):
            await until(lambda: a.pending() == 0)
    assert got.contents == SEVERAL


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (7, "TypeError"),
        (Effects(send=[("b", b"to itself")]), "SendToSelf"),
        (Effects(send=[("", b"to nobody")]), "ValueError"),
        (Effects(send=[("c", bytes(1 << 21))]), "ContentsTooLarge"),
        (Effects(send=[("c", "text")]), "TypeError"),  # type: ignore[list-item]
        (Effects(put={"key": 5}), "TypeError"),  # type: ignore[dict-item]
        (Effects(put={5: b""}), "TypeError"),  # type: ignore[dict-item]
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_a_target_may_not_want_is_a_failed_delivery(outcome: Any, cause: str) -> None:
    @scenario
    async def play() -> None:
        two = Two()

        async def later(message: ILMMessage) -> Any:
            return outcome

        for deliver in (lambda message: outcome, later):
            async with await two.open("a") as a, await two.open("b", deliver, delivery_attempts=1) as b:
                await a.send_to("b", b"")
                while not b.problems():
                    await asyncio.sleep(0.001)
                (problem,) = b.problems()["a"]
                assert isinstance(problem, DeliveryFailed)
                assert cause in problem.cause
                assert (b.pending(), b.get("key")) == (0, None)

    play()


@scenario
async def test_a_message_class_that_fails_is_a_failed_delivery() -> None:
    two = Two()

    def make(*fields: object) -> ILMMessage:
        raise ValueError("no such message")

    async with (
        await two.open("a") as a,
        ILM.open(two.backends["b"], print, two.network.join("b"), message=make, delivery_attempts=1) as b,
    ):
        await a.send_to("b", b"")
        await until(lambda: b.problems())
        with pytest.raises(DeliveryFailed, match="no such message"):
            await b.shutdown(1)


@scenario
async def test_a_target_whose_work_was_cancelled_is_tried_again() -> None:
    two = Two()
    calls = 0

    async def deliver(message: ILMMessage) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise asyncio.CancelledError

    async with await two.open("a") as a, await two.open("b", deliver):
        await a.send_to("b", b"")
        await until(lambda: a.pending() == 0)
    assert calls == 3


@scenario
async def test_effects_for_which_there_is_no_room_wait() -> None:
    two = Two()
    calls = 0

    def deliver(message: ILMMessage) -> Effects:
        nonlocal calls
        calls += 1
        return Effects(send=[("a", b"re")])

    async with await two.open("a") as a, await two.open("b", deliver) as b:
        two.backends["b"].refuse = full
        await a.send_to("b", b"")
        await until(lambda: b.problems())
        assert two.problems["b"].kinds() == [StorageFull]
        two.backends["b"].refuse = lambda change: None
        await until(lambda: two.got["a"].messages)
        await until(lambda: a.pending() == 0)
        assert b.problems() == {}
    assert calls == 1, "the target had returned: it is the commit that is tried again"


@scenario
async def test_shutdown_lets_the_message_in_progress_end() -> None:
    two = Two()
    two.got["b"].open.clear()
    async with await two.open("a") as a:
        b = await two.open("b")
        await a.send_many("b", SEVERAL)
        await until(lambda: two.got["b"].calls)
        ending = asyncio.create_task(b.shutdown(10))
        await until(lambda: b._known["a"].delivery._stopping)
        two.got["b"].open.set()
        await ending
        await until(lambda: a.pending() == 9)
        assert two.got["b"].ids == [1]


@scenario
async def test_shutdown_does_not_wait_longer_than_it_was_told() -> None:
    two = Two()
    two.got["b"].open.clear()
    a, b = await two.open("a"), await two.open("b")
    await a.send_to("b", b"")
    await until(lambda: two.got["b"].calls)
    await b.shutdown(0)
    with pytest.raises(ShutdownTimedOut):
        await a.shutdown(0)
    assert two.got["b"].messages == []


@scenario
async def test_effects_are_what_they_were_when_the_target_returned() -> None:
    """Whatever they are made of: something that can be read only once, or that is used again for the next message."""
    two = Two()
    buffer = bytearray()

    def deliver(message: ILMMessage) -> Effects:
        buffer[:] = message.contents
        return Effects(send=(("a", part) for part in (buffer, b"+")))  # type: ignore[arg-type]

    async with await two.open("a") as a, await two.open("b", deliver):
        await a.send_many("b", SEVERAL[:3])
        await until(lambda: len(two.got["a"].contents) == 6)
        assert two.got["a"].contents == [b"0", b"+", b"1", b"+", b"2", b"+"]


@scenario
async def test_key_that_cannot_be_kept_is_a_mistake_of_the_one_message_or_call() -> None:
    two = Two()

    def deliver(message: ILMMessage) -> Effects:
        return Effects(put={message.contents.decode("utf-8", "surrogateescape"): b"1"})

    async with await two.open("a") as a, await two.open("b", deliver, delivery_attempts=1) as b:
        with pytest.raises(ValueError, match="surrogates"):
            await b.put("\ud800", b"")
        await a.send_to("b", b"\xff")
        await until(lambda: b.problems())
        assert isinstance(b.problems()["a"][0], DeliveryFailed)
        await b.put("key", b"value")
        assert b.get("key") == b"value"


@scenario
async def test_targets_that_block_leave_others_their_turn() -> None:
    two = Two()

    def deliver(message: ILMMessage) -> None:
        time.sleep(0.03)  # more than a slice

    async with await two.open("a") as a, await two.open("b", deliver):
        await a.send_many("b", SEVERAL * 2)
        turns = 0
        while a.pending():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns >= 8, "others had their turn once in several messages only"
