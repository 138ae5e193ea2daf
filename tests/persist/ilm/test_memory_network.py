"""The network in memory: what it does to frames, and what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest

from persist.ilm.errors import TransportClosed
from persist.ilm.memory_network import FRAME_COST, MemoryNetwork, MemoryTransport
from persist.ilm.message import PeerId
from tests.persist.ilm.building import no_timers, turns_until

DEADLINE = 100.0


def run_async(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE):
            await main

    asyncio.run(limited())


def ends(network: MemoryNetwork, *peers: PeerId) -> list[MemoryTransport]:
    """New ends that have heard of each other."""
    joined = [network.join(peer) for peer in peers]
    for end in joined:
        end._inbox.clear()
    return joined


def waiting(end: MemoryTransport) -> list[tuple[PeerId, bytes]]:
    """What the end could take now."""
    return [(source, frame) for source, frame, _ in end._inbox]


async def take(end: MemoryTransport, count: int) -> list[bytes]:
    return [(await end.next_message())[1] for _ in range(count)]


async def settled(network: MemoryNetwork) -> None:
    while network._late:
        await asyncio.sleep(0.001)


# ---------------------------------------------------------------------------------------------------- without faults
def test_a_frame_is_there_when_send_message_returns_and_in_order() -> None:
    async def main() -> None:
        a, b, c = ends(MemoryNetwork(), "a", 2, "c")
        for number in range(100):
            await a.send_message(2, b"%d" % number)
        await c.send_message(2, b"from c")
        assert waiting(b) == [("a", b"%d" % number) for number in range(100)] + [("c", b"from c")]
        assert waiting(c) == []
        assert await b.next_message() == ("a", b"0")

    run_async(main())


def test_an_end_knows_its_id_and_its_limit_and_who_is_there() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = network.join("a", max_frame_bytes=1024), network.join(2)
        assert (a.local_id, b.local_id, a.max_frame_bytes) == ("a", 2, 1024)
        assert (a.connected_peers(), b.connected_peers()) == ((2,), ("a",))
        await b.close()
        assert a.connected_peers() == ()
        assert b.connected_peers() == ()

    run_async(main())


def test_both_ends_are_told_of_each_other_by_an_empty_frame() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a = network.join("a")
        assert waiting(a) == []
        b = network.join("b")
        assert (waiting(a), waiting(b)) == ([("b", b"")], [("a", b"")])

    run_async(main())


def test_frames_that_cannot_be_are_refused() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = network.join("a", max_frame_bytes=1024), network.join("b")
        for frame in (b"", bytes(1025)):
            with pytest.raises(ValueError, match="1 to 1024 bytes"):
                await a.send_message("b", frame)
        await a.send_message("b", bytes(1024))
        assert b
        with pytest.raises(ValueError, match="at least 1024"):
            network.join("c", max_frame_bytes=1023)
        for peer in ("a", "b"):
            with pytest.raises(ValueError, match="already"):
                network.join(peer)
        for wrong in (-1, "", None):
            with pytest.raises(ValueError, match="peer"):
                network.join(wrong)  # type: ignore[arg-type]

    run_async(main())


def test_frames_share_nothing_with_what_was_sent() -> None:
    async def main() -> None:
        a, b = ends(MemoryNetwork(), "a", "b")
        frame = bytearray(b"before")
        await a.send_message("b", frame)  # type: ignore[arg-type]
        frame[:] = b"behind"
        assert await b.next_message() == ("a", b"before")

    run_async(main())


def test_what_is_sent_to_nobody_is_dropped_without_an_error() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        (a,) = ends(network, "a")
        await a.send_message("nobody", b"frame")
        await a.send_message("a", b"frame")
        assert network.statistics.dropped == 2
        assert waiting(a) == []

    run_async(main())


def test_a_round_trip_takes_a_few_turns_of_the_loop_and_waits_for_no_timer() -> None:
    async def main() -> None:
        a, b = ends(MemoryNetwork(), "a", "b")

        async def echo() -> None:
            while True:
                source, frame = await b.next_message()
                await b.send_message(source, frame)

        echoing = asyncio.create_task(echo())
        with no_timers():
            for _ in range(200):
                await a.send_message("b", b"ping")
                back = asyncio.create_task(a.next_message())
                assert await turns_until(back.done) <= 10
                await back
        echoing.cancel()

    run_async(main())


# ---------------------------------------------------------------------------------------------------- backpressure
def test_a_sender_waits_while_the_way_is_full_and_goes_on_as_the_receiver_takes() -> None:
    async def main() -> None:
        network = MemoryNetwork(capacity=10 * (100 + FRAME_COST))
        a, b, c = ends(network, "a", "b", "c")

        async def flood() -> None:
            for number in range(100):
                await a.send_message("b", b"%-100d" % number)

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0)
        assert len(waiting(b)) == 10
        await a.send_message("c", b"another way")
        await c.send_message("b", b"another way")
        for number in range(10):
            assert int((await b.next_message())[1]) == number
        await asyncio.sleep(0)
        assert len(waiting(b)) == 1 + 10
        rest = [frame for frame in await take(b, 91) if frame != b"another way"]
        assert [int(frame) for frame in rest] == list(range(10, 100))
        await flooding

    run_async(main())


@pytest.mark.parametrize("how", ["close", "partition", "disconnect", "own disconnect"])
def test_a_sender_does_not_wait_for_who_went_away(how: str) -> None:
    async def main() -> None:
        network = MemoryNetwork(capacity=100)
        a, b = ends(network, "a", "b")
        await a.send_message("b", bytes(100))
        stuck = asyncio.create_task(a.send_message("b", b"dropped"))
        await asyncio.sleep(0)
        assert not stuck.done()
        if how == "close":
            await b.close()
        elif how == "partition":
            network.partition("a", "b")
        else:
            network.disconnect("b" if how == "disconnect" else "a")
        await stuck
        assert network.statistics.dropped == 1
        assert waiting(b) == ([] if how == "close" else [("a", bytes(100))])

    run_async(main())


def test_frames_in_the_inbox_of_a_closed_end_leave_room_for_its_next_one() -> None:
    async def main() -> None:
        network = MemoryNetwork(capacity=100)
        a, b = ends(network, "a", "b")
        await a.send_message("b", bytes(100))
        await b.close()
        b = network.join("b")
        await a.send_message("b", b"at once")
        assert await take(b, 2) == [b"", b"at once"]

    run_async(main())


# ---------------------------------------------------------------------------------------------------- coming, going
def test_closing_wakes_whoever_waits_and_nothing_goes_after_it() -> None:
    async def main() -> None:
        network = MemoryNetwork(capacity=100)
        a, b = ends(network, "a", "b")
        await a.send_message("b", bytes(100))
        stuck = [asyncio.create_task(a.send_message("b", b"x")), asyncio.create_task(a.next_message())]
        await asyncio.sleep(0)
        await a.close()
        await a.close()
        for result in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(result, TransportClosed)
        with pytest.raises(TransportClosed):
            await a.send_message("b", b"x")
        with pytest.raises(TransportClosed):
            await a.next_message()
        assert await b.next_message() == ("a", bytes(100))

    run_async(main())


def test_a_cancelled_receiver_loses_no_frame() -> None:
    async def main() -> None:
        a, b = ends(MemoryNetwork(), "a", "b")
        for cancel_first in (True, False):
            receiving = asyncio.create_task(b.next_message())
            await asyncio.sleep(0)
            if cancel_first:
                receiving.cancel()
            await a.send_message("b", b"frame")
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert await b.next_message() == ("a", b"frame")

    run_async(main())


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async def main() -> None:
        network = MemoryNetwork(capacity=100)
        a, b = ends(network, "a", "b")
        await a.send_message("b", bytes(100))
        for waiting_for in (lambda: a.send_message("b", b"x"), a.next_message):
            for _ in range(3):
                task = asyncio.create_task(waiting_for())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert network._way("a", "b").waiting == a._waiting == []
        assert len(waiting(b)) == 1

    run_async(main())


def test_an_end_may_come_back_under_its_id() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = ends(network, "a", "b")
        await b.close()
        await a.send_message("b", b"lost")
        again = network.join("b")
        assert (waiting(a), waiting(again)) == ([("b", b"")], [("a", b"")])
        await b.close()  # the old one has nothing to do with it any more
        await a.send_message("b", b"frame")
        assert await take(again, 2) == [b"", b"frame"]

    run_async(main())


def test_a_disconnected_end_is_cut_off_until_it_is_connected_again() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b, c = ends(network, "a", "b", "c")
        await c.send_message("b", b"before")
        network.disconnect("b")
        assert (a.connected_peers(), b.connected_peers()) == (("c",), ())
        for source, destination in ((a, "b"), (b, "a"), (a, "c")):
            await source.send_message(destination, b"frame")
        assert (waiting(a), waiting(b), waiting(c)) == ([], [("c", b"before")], [("a", b"frame")])
        network.reconnect("b")
        network.reconnect("b")
        assert waiting(a) == [("b", b"")]
        assert waiting(b) == [("c", b"before"), ("a", b""), ("c", b"")]
        await a.send_message("b", b"frame")
        assert waiting(b)[-1] == ("a", b"frame")

    run_async(main())


def test_a_partition_is_between_two_and_heals() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b, c = ends(network, "a", "b", "c")
        network.partition("a", "b")
        network.partition("b", "a")
        for source, destination in ((a, "b"), (b, "a"), (a, "c"), (c, "b")):
            await source.send_message(destination, b"frame")
        assert (waiting(a), waiting(b), waiting(c)) == ([], [("c", b"frame")], [("a", b"frame")])
        assert (a.connected_peers(), b.connected_peers(), c.connected_peers()) == (("c",), ("c",), ("a", "b"))
        network.heal("a", "c")  # they are not apart, and hear nothing
        network.heal("b", "a")
        assert (waiting(a), waiting(b)[1:], waiting(c)[1:]) == ([("b", b"")], [("a", b"")], [])
        network.partition("a", "b")
        network.partition("a", "c")
        network.heal()
        network.heal()
        assert len(waiting(a)) == 3
        assert set(a.connected_peers()) == {"b", "c"}
        with pytest.raises(ValueError, match="itself"):
            network.partition("a", "a")

    run_async(main())


# ---------------------------------------------------------------------------------------------------- faults
def numbers(frames: list[tuple[PeerId, bytes]]) -> list[int]:
    return [int(frame) for _, frame in frames]


async def flood(network: MemoryNetwork, count: int = 400) -> list[int]:
    a, b = ends(network, "a", "b")
    for number in range(count):
        await a.send_message("b", b"%d" % number)
    await settled(network)
    arrived = numbers(waiting(b))
    await a.close()
    await b.close()
    return arrived


def test_frames_are_lost() -> None:
    async def main() -> None:
        network = MemoryNetwork(loss=0.3)
        arrived = await flood(network)
        assert arrived == sorted(set(arrived))
        assert 200 < len(arrived) < 360
        assert network.statistics.lost == 400 - len(arrived)
        assert network.statistics.delivered == len(arrived)

    run_async(main())


def test_frames_are_doubled() -> None:
    async def main() -> None:
        network = MemoryNetwork(duplication=0.3)
        arrived = await flood(network)
        assert set(arrived) == set(range(400))
        assert arrived == sorted(arrived)
        assert 40 < network.statistics.doubled == len(arrived) - 400

    run_async(main())


def test_frames_are_delayed_and_keep_their_order() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay=(0.002, 0.02))
        begun = asyncio.get_running_loop().time()
        assert await flood(network) == list(range(400))
        assert asyncio.get_running_loop().time() - begun >= 0.002
        assert network.statistics.delayed == 400

    run_async(main())


def test_frames_are_reordered() -> None:
    async def main() -> None:
        network = MemoryNetwork(reordering=0.2)
        arrived = await flood(network)
        assert sorted(arrived) == list(range(400))
        assert arrived != sorted(arrived)
        held_back = [later for earlier, later in pairwise(arrived) if later < earlier]
        assert 0 < len(held_back) <= network.statistics.reordered

    run_async(main())


def test_a_frame_without_delay_does_not_overtake_one_that_is_late() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay=(0.01, 0.01))
        a, b = ends(network, "a", "b")
        await a.send_message("b", b"1")
        network.delay = (0.0, 0.0)
        await a.send_message("b", b"2")
        assert waiting(b) == []
        assert await take(b, 2) == [b"1", b"2"]
        await a.send_message("b", b"3")
        assert numbers(waiting(b)) == [3]

    run_async(main())


def test_faults_can_be_changed_at_any_time() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        a, b = ends(network, "a", "b")
        for loss in (0.0, 1.0, 0.0):
            network.loss = loss
            await a.send_message("b", b"%d" % int(loss))
        assert numbers(waiting(b)) == [0, 0]

    run_async(main())


def test_a_late_frame_is_lost_if_its_ends_are_apart_when_it_arrives_and_only_then() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay=(0.02, 0.02))
        a, b = ends(network, "a", "b")
        await a.send_message("b", b"lost")
        network.partition("a", "b")
        await settled(network)
        network.heal()
        await a.send_message("b", b"late")
        await b.close()
        b = network.join("b")
        await settled(network)
        assert [frame for _, frame in waiting(b)] == [b"", b"late"]
        assert network.statistics.lost == 1
        assert network._way("a", "b").bytes == len(b"late") + FRAME_COST

    run_async(main())


FAULTS: dict[str, Any] = {"loss": 0.2, "duplication": 0.2, "reordering": 0.3}


def test_a_seed_decides_what_happens_whatever_others_send() -> None:
    async def once(seed: int, crowd: int) -> tuple[list[int], int]:
        """What arrives on one way: the frames in the order of their numbers, for time itself cannot be repeated."""
        network = MemoryNetwork(seed=seed, **FAULTS)
        a, b, c = ends(network, "a", "b", "c")
        for number in range(200):
            for _ in range(crowd):
                await c.send_message("b", b"0")
                await c.send_message("a", b"0")
            await a.send_message("b", b"%d" % number)
        await settled(network)
        return sorted(int(frame) for source, frame in waiting(b) if source == "a"), network.statistics.lost

    async def main() -> None:
        first, _ = await once(7, 0)
        second, lost = await once(7, 2)
        third, _ = await once(8, 0)
        assert first == second != third
        assert lost > 80

    run_async(main())


def test_every_frame_is_accounted_for() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay=(0.0, 0.004), **FAULTS)
        a, b = ends(network, "a", "b")
        for number in range(300):
            await a.send_message("b", b"%d" % number)
            if number % 50 == 49:
                network.partition("a", "b")
                await asyncio.sleep(0.002)
                network.heal()
            if number % 70 == 69:
                network.disconnect("a")
                await a.send_message("b", b"dropped")
                network.reconnect("a")
        await settled(network)
        found = network.statistics
        assert found.sent + found.doubled == found.delivered + found.lost + found.dropped
        frames = [frame for _, frame in waiting(b) if frame]
        assert len(frames) == found.delivered
        await take(b, len(waiting(b)))
        assert network._way("a", "b").bytes == 0
        assert network._way("a", "b").late == 0

    run_async(main())


def test_a_network_goes_from_one_event_loop_to_the_next() -> None:
    network = MemoryNetwork(delay=(0.01, 0.01))
    a, b = ends(network, "a", "b")

    async def send() -> None:
        await a.send_message("b", b"left behind")

    async def receive() -> None:
        await a.send_message("b", b"new")
        assert await take(b, 2) == [b"left behind", b"new"]

    run_async(send())
    run_async(receive())
