"""The outbox of one peer: who waits for room is woken in turn, and ids end where they end."""

from __future__ import annotations

import asyncio

import pytest

from persist.ilm import waiting
from persist.ilm.errors import MessageIdNotNew
from persist.ilm.facade import ILM
from persist.ilm.message import MAX_ID, ILMMessage
from persist.ilm.outboxes import Outbox
from persist.ilm.waiting import Crowd
from tests.persist.ilm.building import Two, scenario, until

WAITING = 4000


@scenario
async def test_senders_who_wait_are_woken_as_often_as_there_is_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    reckon = Outbox.reckon

    def counted(self: Outbox) -> None:
        nonlocal looks
        looks += 1
        reckon(self)

    two = Two()
    async with await two.open("a", outbox_limit=16 << 10) as a:
        senders = [asyncio.create_task(a.send_to("b", bytes(200))) for _ in range(WAITING)]
        await until(lambda: "b" in a._known and len(a._known["b"].outbox.room._waiters) > WAITING - 100)
        monkeypatch.setattr(Outbox, "reckon", counted)
        async with await two.open("b"):
            assert sorted(await asyncio.gather(*senders)) == list(range(1, WAITING + 1))
            await until(lambda: a.pending() == 0)
    assert looks < 3 * WAITING


@scenario
async def test_a_sender_who_is_cancelled_when_woken_lets_in_the_next() -> None:
    two = Two()
    async with await two.open("a", outbox_limit=100) as a:
        await a.send_to("b", bytes(100))
        first, second, third = (asyncio.create_task(a.send_to("b", b"")) for _ in range(3))
        room = a._known["b"].outbox.room
        await until(lambda: len(room._waiters) == 3)
        outbox = a._known["b"].outbox
        outbox.limit = 1000
        outbox.reckon()
        room.wake_first()
        first.cancel()
        assert [await second, await third] == [2, 3]
        assert first.cancelled()


@scenario
async def test_who_waits_no_more_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LONGEST", 1e6)  # nobody looks again by himself
    crowd = Crowd()
    late, following = asyncio.create_task(crowd.wait()), asyncio.create_task(crowd.wait())
    await until(lambda: len(crowd._waiters) == 2)
    next(iter(crowd._waiters)).set_result(None)  # its time is over, and it has not seen it yet
    crowd.wake_first()
    await following
    await late


async def with_all_ids_used() -> ILM[ILMMessage]:
    a = await Two().open("a")
    await a.send(ILMMessage("a", "b", MAX_ID, b"the last"))
    return a


@scenario
async def test_there_is_no_id_behind_the_largest() -> None:
    async with await with_all_ids_used() as a:
        for send in (lambda: a.send_to("b", b""), lambda: a.send_many("b", [b"", b""])):
            with pytest.raises(MessageIdNotNew) as failed:
                await send()
            assert failed.value.last == MAX_ID
        assert list(await a.send_many("b", [])) == []
        assert a.pending("b") == 1


@scenario
async def test_several_messages_whose_last_ids_do_not_exist_are_refused_whole() -> None:
    async with await Two().open("a") as a:
        await a.send(ILMMessage("a", "b", MAX_ID - 2, b""))
        with pytest.raises(MessageIdNotNew):
            await a.send_many("b", [b""] * 3)
        assert list(await a.send_many("b", [b""] * 2)) == [MAX_ID - 1, MAX_ID]


@pytest.mark.parametrize("message_id", [1.0, "1", None, True, MAX_ID + 1])
def test_an_id_that_is_no_int_is_refused_by_name(message_id: object) -> None:
    @scenario
    async def refused() -> None:
        async with await Two().open("a") as a:
            with pytest.raises(ValueError, match=repr(message_id)):
                await a.send(ILMMessage("a", "b", message_id, b""))  # type: ignore[arg-type]
            assert a.pending() == 0

    refused()
