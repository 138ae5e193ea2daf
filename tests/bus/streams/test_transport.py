"""Frames arrive whole, in order, from whom it says, and one connection's trouble is nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import socket
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bus
from bus import (
    FrameTooLarge,
    StreamTransport,
    TcpAddress,
    Timing,
    TransportClosed,
    UnixAddress,
)
from bus.streams.connection import READ_BYTES
from bus.streams.errors import Refusal, RefusedByPeer
from bus.streams.frames import frame
from bus.streams.handshake import connector
from bus.streams.inbox import OVERHEAD
from persist.ilm.transport import Transport
from tests.bus.streams.building import (
    KEY,
    QUICK,
    RESTLESS,
    RawPeer,
    Watch,
    asynchronous,
    frames,
    open_pair,
    pair,
    take,
    terms,
)

TCP = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def unix(tmp_path):
    tmp_path.chmod(0o700)
    return UnixAddress(str(tmp_path / "alice.sock"))


def fits(transport: Transport) -> Transport:
    """mypy looks at this: StreamTransport is a transport as persist wants it, though it does not know it."""
    return transport


# ------------------------------------------------------------------------------------------------ frames
@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@asynchronous
async def test_frames_of_every_size_arrive_whole_and_in_order_both_ways(unix, kind, key):
    sizes = [1, 2, 1023, 4096, READ_BYTES - 4, READ_BYTES, 1 << 20, 3, 70_000]
    sent = [secrets.token_bytes(size) for size in sizes]
    async with pair(unix if kind == "unix" else TCP, key=key) as (alice, bob):
        fits(alice)

        async def send(source, peer):
            for one in sent:
                await source.send_message(peer, one)

        sending = asyncio.gather(send(alice, "bob"), send(bob, "alice"))
        assert await take(bob, len(sent)) == [("alice", one) for one in sent]
        assert await take(alice, len(sent)) == [("bob", one) for one in sent]
        await sending
        assert (alice.statistics().sent, alice.statistics().received) == (len(sent), len(sent))


@asynchronous
async def test_ids_may_be_numbers_and_any_text(unix):
    async with (
        await StreamTransport.open(2**64 - 1, listen=[unix]) as one,
        await StreamTransport.open("größe " * 30, connect={2**64 - 1: unix}) as other,
    ):
        assert await other.next_message() == (2**64 - 1, b"")
        assert await one.next_message() == ("größe " * 30, b"")
        assert list(one.connected_peers()) == [other.local_id]


@asynchronous
async def test_one_end_may_listen_in_several_places_and_others_come_by_each(unix):
    async with (
        await StreamTransport.open("alice", listen=[unix, TCP]) as alice,
        await StreamTransport.open("bob", connect={"alice": alice.addresses[0]}) as bob,
        await StreamTransport.open("carol", connect={"alice": alice.addresses[1]}) as carol,
    ):
        assert set(await take(alice, 2)) == {("bob", b""), ("carol", b"")}
        await take(bob, 1)
        await take(carol, 1)
        await bob.send_message("alice", b"by file")
        await carol.send_message("alice", b"by port")
        assert set(await take(alice, 2)) == {("bob", b"by file"), ("carol", b"by port")}


@pytest.mark.parametrize("size", [0, 2049])
@asynchronous
async def test_a_frame_that_cannot_be_carried_is_the_callers_fault(unix, size):
    async with pair(unix, max_frame_bytes=2048) as (alice, bob):
        with pytest.raises(FrameTooLarge) as caught:
            await alice.send_message("bob", bytes(size))
        assert (caught.value.size, caught.value.limit) == (size, 2048)
        await alice.send_message("bob", bytes(2048))
        assert await frames(bob, 1) == [bytes(2048)]


@asynchronous
async def test_a_frame_for_somebody_who_is_away_is_dropped_without_an_error(unix):
    async with await StreamTransport.open("alice", listen=[unix]) as alice:
        await alice.send_message("bob", b"nobody hears this")
        assert (alice.statistics().dropped, alice.statistics().sent) == (1, 0)


@asynchronous
async def test_the_last_frames_before_a_close_arrive(unix):
    alice, bob = await open_pair(unix)
    for number in range(100):
        await bob.send_message("alice", b"%d" % number + bytes(1000))
    await bob.close()
    assert [int(one[:-1000]) for one in await frames(alice, 100)] == list(range(100))
    await alice.close()


# ------------------------------------------------------------------------------------------------ closing
@asynchronous
async def test_close_ends_all_who_wait_and_is_idempotent(unix, tmp_path):
    alice, bob = await open_pair(unix)
    waiting = asyncio.create_task(alice.next_message())
    await asyncio.sleep(0)
    await asyncio.gather(alice.close(), alice.close())
    await alice.close()
    for call in (waiting, alice.next_message(), alice.send_message("bob", b"x")):
        with pytest.raises(TransportClosed):
            await call
    assert os.listdir(tmp_path) == []
    assert list(alice.connected_peers()) == []
    await bob.close()


@asynchronous
async def test_close_does_not_wait_for_a_peer_that_does_not_read(unix):
    before = len(os.listdir("/proc/self/fd"))
    async with await StreamTransport.open("alice", listen=[unix], timing=QUICK, outbound_bytes=1 << 16) as alice:
        peer = await RawPeer.connect(unix)
        await peer.meet(terms("bob"), "alice")
        assert await alice.next_message() == ("bob", b"")

        async def send_on():
            while True:
                await alice.send_message("bob", bytes(10_000))

        sending = asyncio.create_task(send_on())
        seen = -1
        while seen != alice.statistics().sent or seen < 1:
            seen = alice.statistics().sent
            await asyncio.sleep(0.02)
        await alice.close()
        assert len(os.listdir("/proc/self/fd")) == before + 1  # the peer's
        with pytest.raises(TransportClosed):
            await sending
        await peer.close()


@asynchronous
async def test_opening_and_closing_at_any_moment_leaves_nothing(unix, tmp_path):
    """Also with a connector in the middle of its handshake: it is cut off wherever it is."""
    for rounds in range(30):
        alice = await StreamTransport.open("alice", listen=[unix, TCP], timing=QUICK)
        bob = await StreamTransport.open("bob", connect={"alice": alice.addresses[rounds % 2]}, timing=QUICK)
        for _ in range(rounds):
            await asyncio.sleep(0)
        await (bob if rounds % 3 else alice).close()
        await alice.close()
        await bob.close()
        assert os.listdir(tmp_path) == []


@asynchronous
async def test_a_cancelled_call_leaves_the_transport_as_it_was(unix):
    async with pair(unix) as (alice, bob):
        for _ in range(20):
            waiting = asyncio.create_task(bob.next_message())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await alice.send_message("bob", b"still here")
        assert await bob.next_message() == ("alice", b"still here")


@asynchronous
async def test_opening_again_at_the_same_place_at_once_works(unix):
    for address in (unix, TCP):
        first = await StreamTransport.open("alice", listen=[address])
        place = first.addresses[0]
        async with await StreamTransport.open("bob", connect={"alice": place}, timing=QUICK) as bob:
            await first.next_message()
            await bob.next_message()
            await first.close()
            async with await StreamTransport.open("alice", listen=[place]) as again:
                assert await bob.next_message() == ("alice", b"")
                await bob.send_message("alice", b"to the new one")
                assert await frames(again, 1) == [b"to the new one"]


# ------------------------------------------------------------------------------------------------ connecting
@asynchronous
async def test_who_is_not_there_yet_is_tried_until_it_is(unix):
    watch = Watch()
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=QUICK, on_event=watch) as bob:
        await watch.until(lambda event: getattr(event, "retry_in", 0) >= QUICK.retry_longest / 2)
        delays = [event.retry_in for event in watch.events]
        assert all(delay <= QUICK.retry_longest for delay in delays)
        assert delays[0] < delays[-1]
        async with await StreamTransport.open("alice", listen=[unix]):
            assert await bob.next_message() == ("alice", b"")


@asynchronous
async def test_both_may_connect_to_each_other_and_one_connection_stays(tmp_path):
    for rounds in range(20):
        places = {name: UnixAddress(str(tmp_path / f"{name}{rounds}")) for name in ("alice", "bob")}
        alice = await StreamTransport.open(
            "alice", listen=[places["alice"]], connect={"bob": places["bob"]}, timing=QUICK
        )
        for _ in range(rounds):
            await asyncio.sleep(0)
        bob = await StreamTransport.open(
            "bob", listen=[places["bob"]], connect={"alice": places["alice"]}, timing=QUICK
        )
        await exchanges(alice, bob)
        assert alice.statistics().peers == bob.statistics().peers == 1
        await asyncio.gather(alice.close(), bob.close())


async def exchanges(alice, bob):
    """Both send until both have heard each other: a frame may fall into the time when one of two connections goes."""

    async def hear(transport):
        while not (await transport.next_message())[1]:
            pass

    heard = asyncio.gather(hear(alice), hear(bob))
    while not heard.done():
        await alice.send_message("bob", b"hello")
        await bob.send_message("alice", b"hello")
        await asyncio.wait([heard], timeout=0.005)
    await heard


@asynchronous
async def test_crossing_handshakes_end_with_the_connection_that_the_lesser_id_asked_for(unix, tmp_path):
    """bob's connection stands when alice's is still shaking hands: alice's takes its place at both ends."""
    with_bob = UnixAddress(str(tmp_path / "bob.sock"))
    heard: asyncio.Queue[RawPeer] = asyncio.Queue()

    async def as_bob(reader, writer):
        heard.put_nowait(RawPeer(reader, writer))

    server = await asyncio.start_unix_server(as_bob, with_bob.path)
    watch, bob = Watch(), terms("bob")
    async with await StreamTransport.open(
        "alice", listen=[unix], connect={"bob": with_bob}, timing=QUICK, on_event=watch
    ) as alice:
        asked_by_alice = await heard.get()
        asked_by_bob = await RawPeer.connect(unix)
        await asked_by_bob.meet(bob, "alice")
        assert await alice.next_message() == ("bob", b"")
        await asked_by_alice.be_met(bob)
        assert await alice.next_message() == ("bob", b"")
        await asked_by_bob.ended()
        await watch.fault("Replaced")
        asked_by_alice.send(b"this one stays")
        assert await alice.next_message() == ("bob", b"this one stays")
        refused = await RawPeer.connect(unix)
        with pytest.raises(RefusedByPeer, match="already connected"):
            await refused.meet(bob, "alice")
        assert alice.statistics().peers == 1
        for peer in (asked_by_alice, asked_by_bob, refused):
            await peer.close()
    server.close()
    await server.wait_closed()


@asynchronous
async def test_a_rival_makes_a_dead_connection_be_noticed_sooner(unix, tmp_path):
    """alice's connection to bob is half-open: bob is gone from it and connects himself, which comes second for now."""
    with_bob = UnixAddress(str(tmp_path / "bob.sock"))
    asked: asyncio.Queue[RawPeer] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda *streams: asked.put_nowait(RawPeer(*streams)), with_bob.path)
    watch, bob = Watch(), terms("bob", heartbeat_ms=40)
    patient = Timing(handshake=60.0, heartbeat=0.04, missed=10_000, retry_first=1e3, retry_longest=1e3)
    async with await StreamTransport.open(
        "alice", listen=[unix], connect={"bob": with_bob}, timing=patient, on_event=watch
    ) as alice:
        mute = await asked.get()
        await mute.be_met(bob)
        assert await alice.next_message() == ("bob", b"")
        while True:
            rival = await RawPeer.connect(unix)
            try:
                await rival.meet(bob, "alice")
                break
            except RefusedByPeer as refused:
                await rival.close()
                if refused.code != Refusal.ALREADY_CONNECTED:
                    raise
                await asyncio.sleep(0.01)
        await watch.fault("PeerSilent")
        assert await alice.next_message() == ("bob", b"")
        await rival.close()
        await mute.close()
    server.close()
    await server.wait_closed()


@asynchronous
async def test_who_connects_again_takes_the_place_of_its_older_connection(unix):
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[unix], on_event=watch) as alice:
        one, other = terms("bob"), terms("bob")
        peers = []
        for mine in (one, one, other, other):  # a process twice, then another one
            peers.append(peer := await RawPeer.connect(unix))
            await peer.meet(mine, "alice")
            assert await alice.next_message() == ("bob", b"")
            await alice.send_message("bob", b"to the newest")
            while (contents := await peer.hear()) == b"":
                pass
            assert contents == b"to the newest"
            assert alice.statistics().peers == 1
        assert alice.statistics().faults == {"Replaced": 3}
        for peer in peers:
            await peer.close()


@asynchronous
async def test_the_wrong_peer_at_an_address_is_refused_and_tried_again(unix):
    watch = Watch()
    async with (
        await StreamTransport.open("mallory", listen=[unix]) as mallory,
        await StreamTransport.open("bob", connect={"alice": unix}, timing=QUICK, on_event=watch),
    ):
        fault = await watch.fault("WrongPeer")
        assert (fault.wanted, fault.found) == ("alice", "mallory")
        await watch.until(lambda event: len(watch.events) > 3)
        assert list(mallory.connected_peers()) == []


@asynchronous
async def test_a_transport_that_is_sent_to_its_own_address_notices(unix):
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[unix], connect={"bob": unix}, timing=QUICK, on_event=watch):
        fault = await watch.fault("SameId")
        assert (fault.peer, fault.itself) == ("alice", True)
    with pytest.raises(ValueError, match="itself"):
        await StreamTransport.open("alice", connect={"alice": unix})


@pytest.mark.parametrize(
    ("theirs", "seen", "told"),
    [
        ({"key": b"another secret that is long"}, "WrongKey", "RefusedByPeer"),
        ({"key": None}, "SecurityMismatch", "RefusedByPeer"),
        ({"max_frame_bytes": 4096}, "RefusedByPeer", "FrameLimitMismatch"),
    ],
    ids=["wrong key", "no key", "other limit"],
)
@asynchronous
async def test_ends_that_do_not_fit_say_so_and_go_on_trying(theirs, seen, told):
    here, there = Watch(), Watch()
    options = {"timing": QUICK, "key": KEY, **theirs}
    async with (
        await StreamTransport.open("alice", listen=[TCP], key=KEY, timing=QUICK, on_event=here) as alice,
        await StreamTransport.open("bob", connect={"alice": alice.addresses[0]}, on_event=there, **options),
    ):
        await here.fault(seen)
        await there.fault(told)
        await there.until(lambda event: len(there.events) > 2)
        assert alice.statistics().connections == 0
        assert alice.statistics().faults[seen] > 0


@asynchronous
async def test_no_more_peers_than_allowed(unix):
    watch = Watch()
    async with (
        await StreamTransport.open("alice", listen=[unix], max_peers=1, on_event=watch) as alice,
        await StreamTransport.open("bob", connect={"alice": unix}),
    ):
        await alice.next_message()
        async with await StreamTransport.open("carol", connect={"alice": unix}, timing=QUICK):
            await watch.fault("TooManyPeers")
            assert list(alice.connected_peers()) == ["bob"]


# ------------------------------------------------------------------------------------------------ health
@asynchronous
async def test_idle_connections_are_kept_alive_by_heartbeats(unix):
    async with pair(unix, timing=RESTLESS) as (alice, bob):
        await asyncio.sleep(RESTLESS.heartbeat * (RESTLESS.missed + 1) * 3)
        assert alice.statistics().connections == 1
        await alice.send_message("bob", b"still the same")
        assert await bob.next_message() == ("alice", b"still the same")


@asynchronous
async def test_a_peer_that_falls_silent_is_dropped_and_connected_to_again(unix):
    """Its machine is gone, say, and no end of the connection ever comes."""
    asked: asyncio.Queue[RawPeer] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda *streams: asked.put_nowait(RawPeer(*streams)), unix.path)
    watch, began = Watch(), asyncio.get_running_loop().time()
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=RESTLESS, on_event=watch) as bob:
        mute = await asked.get()
        await mute.be_met(terms("alice", heartbeat_ms=40))
        fault = await watch.fault("PeerSilent")
        assert fault.seconds > RESTLESS.heartbeat * RESTLESS.missed
        assert asyncio.get_running_loop().time() - began >= RESTLESS.heartbeat * RESTLESS.missed
        again = await asked.get()
        await again.be_met(terms("alice"))
        assert await take(bob, 1) == [("alice", b"")]
        await mute.close()
        await again.close()
    server.close()
    await server.wait_closed()


@asynchronous
async def test_a_peer_that_is_not_read_from_for_long_is_not_taken_for_dead(unix):
    async with pair(unix, timing=RESTLESS, inbound_bytes=1 << 16) as (alice, bob):

        async def send():
            for number in range(60):
                await bob.send_message("alice", b"%05d" % number + bytes(100_000))

        sending = asyncio.create_task(send())
        await asyncio.sleep(RESTLESS.heartbeat * (RESTLESS.missed + 1) * 2)
        assert not sending.done()
        assert [int(one[:5]) for one in await frames(alice, 60)] == list(range(60))
        await sending
        assert alice.statistics().connections == 1


# ------------------------------------------------------------------------------------------------ backpressure
@asynchronous
async def test_a_flooding_peer_fills_its_share_of_memory_and_no_more(unix):
    share, size = 1 << 18, 10_000
    async with await StreamTransport.open("alice", listen=[unix], inbound_bytes=share, timing=QUICK) as alice:
        flood = await RawPeer.connect(unix)
        await flood.meet(terms("flood"), "alice")

        async def send_on():
            while True:
                flood.send(bytes(size))
                await flood.writer.drain()

        flooding = asyncio.create_task(send_on())
        seen = -1
        while seen != alice.statistics().received or seen < 5:
            seen = alice.statistics().received
            await asyncio.sleep(0.02)
        assert seen * (size + OVERHEAD) <= share + READ_BYTES
        async with await StreamTransport.open("bob", connect={"alice": unix}) as bob:  # is not hindered
            await bob.next_message()
            await bob.send_message("alice", b"me too")
            while await alice.next_message() != ("bob", b"me too"):
                pass
        while alice.statistics().received < seen * 3:  # and it goes on, now that something was taken
            assert (await alice.next_message())[0] in {"flood", "bob"}
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        await flood.close()


@asynchronous
async def test_what_one_read_brings_is_not_taken_apart_beyond_the_share(unix):
    async with await StreamTransport.open("alice", listen=[unix], inbound_bytes=5_000) as alice:
        peer = await RawPeer.connect(unix)
        await peer.meet(terms("bob"), "alice")
        peer.writer.write(b"".join(frame(b"%02d" % number + bytes(998)) for number in range(60)))
        assert await alice.next_message() == ("bob", b"")
        assert [int(one[:2]) for one in await frames(alice, 30)] == list(range(30))
        assert alice.statistics().received <= 30 + 5
        assert [int(one[:2]) for one in await frames(alice, 30)] == list(range(30, 60))
        await peer.close()


@asynchronous
async def test_connecting_again_and_again_does_not_give_a_peer_more_memory(unix):
    share = 1 << 17
    async with await StreamTransport.open("alice", listen=[unix], inbound_bytes=share, timing=QUICK) as alice:
        for _ in range(30):
            flood = await RawPeer.connect(unix)
            await flood.meet(terms("flood"), "alice")
            flood.writer.write(frame(bytes(8000)) * 100)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await flood.ended()
            await flood.close()
        assert alice.statistics().connections == 30
        assert alice.statistics().received * 8000 <= share + READ_BYTES


@asynchronous
async def test_who_sends_waits_while_the_other_end_does_not_read(unix):
    async with await StreamTransport.open("alice", listen=[unix], outbound_bytes=1 << 16, timing=QUICK) as alice:
        lazy = await RawPeer.connect(unix)
        await lazy.meet(terms("lazy"), "alice")
        assert await alice.next_message() == ("lazy", b"")

        async def send():
            for number in range(200):
                await alice.send_message("lazy", b"%03d" % number + bytes(20_000))

        sending = asyncio.create_task(send())
        seen = -1
        while seen != alice.statistics().sent or seen < 1:
            seen = alice.statistics().sent
            await asyncio.sleep(0.02)
        assert not sending.done()
        got: list[int] = []
        while len(got) < 200:
            contents = await lazy.hear()
            if contents:
                got.append(int(contents[:3]))
        assert got == list(range(200))
        await sending
        await lazy.close()


@asynchronous
async def test_who_waits_to_send_goes_on_when_the_connection_ends(unix):
    async with await StreamTransport.open("alice", listen=[unix], outbound_bytes=1 << 16, timing=QUICK) as alice:
        lazy = await RawPeer.connect(unix)
        await lazy.meet(terms("lazy"), "alice")
        await alice.next_message()

        async def send():
            while not alice.statistics().dropped:
                await alice.send_message("lazy", bytes(20_000))

        sending = asyncio.create_task(send())
        seen = -1
        while seen != alice.statistics().sent or seen < 1:
            seen = alice.statistics().sent
            await asyncio.sleep(0.02)
        await lazy.close()
        await sending


# ------------------------------------------------------------------------------------------------ hostile ends
@asynchronous
async def test_a_peer_that_sends_byte_by_byte_is_understood(unix):
    async with await StreamTransport.open("alice", listen=[unix]) as alice:
        peer = await RawPeer.connect(unix)
        dialogue = connector(terms("bob"), secrets.token_bytes(32), "alice")

        async def slowly(contents):
            for byte in frame(contents):
                peer.writer.write(bytes([byte]))
                await peer.writer.drain()
                await asyncio.sleep(0)

        await slowly(next(dialogue))
        for _ in range(2):
            await slowly(dialogue.send(await peer.hear()))
        with pytest.raises(StopIteration):
            dialogue.send(await peer.hear())
        for contents in (b"one", b"", b"x" * 300):
            await slowly(contents)
        assert await take(alice, 3) == [("bob", b""), ("bob", b"one"), ("bob", b"x" * 300)]
        await peer.close()


@asynchronous
async def test_frames_that_come_together_with_the_end_of_the_handshake_are_not_lost(unix):
    """The acceptor is told who connects and what is sent in one read."""
    async with await StreamTransport.open("alice", listen=[unix]) as alice:
        peer = await RawPeer.connect(unix)
        dialogue = connector(terms("bob"), secrets.token_bytes(32), "alice")
        peer.send(next(dialogue))
        peer.send(dialogue.send(await peer.hear()))
        identity = dialogue.send(await peer.hear())
        peer.writer.write(frame(identity) + frame(b"at once") + frame(b"and more"))
        assert await take(alice, 3) == [("bob", b""), ("bob", b"at once"), ("bob", b"and more")]
        await peer.close()


@pytest.mark.parametrize(
    ("garbage", "fault"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "FrameTooLong"),
        ((1025).to_bytes(4, "little"), "FrameTooLong"),
        (frame(b""), "MalformedHandshake"),
        (frame(b"RLST"), "MalformedHandshake"),
        (frame(b"RLST\x02\x00\x01\x00" + bytes(32)), "VersionMismatch"),
        (frame(b"RLST\x01\x00\x02\x00" + bytes(32)), "MalformedHandshake"),
        (b"", "ConnectionLost"),
    ],
)
@asynchronous
async def test_strangers_are_refused_by_name_of_the_reason(unix, garbage, fault):
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[unix], on_event=watch) as alice:
        stranger = await RawPeer.connect(unix)
        stranger.writer.write(garbage)
        if not garbage:
            stranger.writer.write_eof()
        await stranger.ended()
        await watch.fault(fault)
        assert alice.statistics().faults == {fault: 1}
        await stranger.close()


@asynchronous
async def test_a_frame_over_the_limit_ends_this_connection_and_no_other(unix):
    watch = Watch()
    async with (
        await StreamTransport.open("alice", listen=[unix], on_event=watch, max_frame_bytes=4096) as alice,
        await StreamTransport.open("carol", connect={"alice": unix}, max_frame_bytes=4096) as carol,
    ):
        await carol.next_message()
        peer = await RawPeer.connect(unix)
        await peer.meet(terms("bob", max_frame_bytes=4096), "alice")
        peer.send(b"fine")
        peer.writer.write((4097).to_bytes(4, "little"))
        await peer.ended()
        fault = await watch.fault("FrameTooLong")
        assert (fault.length, fault.limit) == (4097, 4096)
        await carol.send_message("alice", b"unharmed")
        assert await frames(alice, 2) == [b"fine", b"unharmed"]
        await peer.close()


@asynchronous
async def test_a_frame_that_was_changed_on_the_way_ends_the_connection():
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[TCP], key=KEY, on_event=watch) as alice:
        peer = await RawPeer.connect(alice.addresses[0])
        await peer.meet(terms("bob", key=KEY, sealed=True), "alice")
        assert await alice.next_message() == ("bob", b"")
        peer.send(b"no seal of mine fits this, and yet it has more than 16 bytes")
        await peer.ended()
        await watch.fault("FrameForged")
        assert alice.statistics().received == 0
        await peer.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=300), stands=st.booleans(), framed=st.booleans())
def test_whatever_a_stranger_sends_is_a_fault_and_others_go_on(unix, garbage, stands, framed):
    @asynchronous
    async def once():
        async with pair(unix, timing=QUICK) as (alice, bob):
            stranger = await RawPeer.connect(unix)
            if stands:
                await stranger.meet(terms("stranger"), "alice")
            stranger.writer.write(frame(garbage) if framed else garbage)
            stranger.writer.write_eof()
            await stranger.ended()
            await bob.send_message("alice", b"unharmed")
            while (await alice.next_message()) != ("bob", b"unharmed"):
                pass
            assert list(alice.connected_peers()) == ["bob"]
            await stranger.close()

    once()


@asynchronous
async def test_a_handshake_that_does_not_end_is_given_up_after_the_deadline(unix):
    watch = Watch()
    async with await StreamTransport.open(
        "alice", listen=[unix], timing=Timing(handshake=0.05), on_event=watch
    ) as alice:
        slow = await RawPeer.connect(unix)
        slow.writer.write(b"\x28\0\0\0RLST")
        await slow.ended()
        assert (await watch.fault("HandshakeTimedOut")).seconds == 0.05
        assert alice.statistics().handshakes == 0
        await slow.close()


@asynchronous
async def test_an_acceptor_that_says_nothing_is_given_up_after_the_deadline(unix):
    streams = []
    server = await asyncio.start_unix_server(lambda *both: streams.append(both), unix.path)
    watch = Watch()
    timing = Timing(handshake=0.05, retry_first=0.01)
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=timing, on_event=watch):
        await watch.until(lambda event: len(watch.events) == 3)
        assert {type(event.fault).__name__ for event in watch.events} == {"HandshakeTimedOut"}
    for _, writer in streams:
        writer.close()
    server.close()
    await server.wait_closed()


@asynchronous
async def test_many_that_never_finish_do_not_keep_others_out(unix):
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[unix], max_handshakes=8, on_event=watch) as alice:
        slow = [await RawPeer.connect(unix) for _ in range(40)]
        await watch.until(lambda event: len(watch.events) == 32)
        assert {type(event.fault).__name__ for event in watch.events} == {"PushedOut"}
        assert alice.statistics().handshakes == 8
        async with await StreamTransport.open("bob", connect={"alice": unix}):
            assert await alice.next_message() == ("bob", b"")
        for one in slow:
            await one.close()


@asynchronous
async def test_a_process_without_descriptors_to_spare_goes_on_accepting_when_it_has_some(unix):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    watch, hoard = Watch(), []
    async with await StreamTransport.open("alice", listen=[unix], on_event=watch) as alice:
        peer = socket.socket(socket.AF_UNIX)
        peer.setblocking(False)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 3, hard))
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.open("/dev/null", os.O_RDONLY))
            await asyncio.get_running_loop().sock_connect(peer, unix.path)
            assert "many open files" in (await watch.fault("CannotAccept")).cause
            seen = len(watch.events)
            await watch.until(lambda event: len(watch.events) > seen)  # it tries again, now and then
        finally:
            for descriptor in hoard:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        met = RawPeer(*await asyncio.open_unix_connection(sock=peer))
        await met.meet(terms("bob"), "alice")
        assert await alice.next_message() == ("bob", b"")
        await met.close()


# ------------------------------------------------------------------------------------------------ reports
@asynchronous
async def test_the_log_names_what_happened_and_does_not_repeat_itself(unix, caplog):
    caplog.set_level(logging.INFO, "ringleader")
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=QUICK, on_event=(watch := Watch())):
        await watch.until(lambda event: len(watch.events) > 4)
    [line] = [record.getMessage() for record in caplog.records]
    assert "cannot connect with 'alice'" in line
    assert unix.path in line


@asynchronous
async def test_who_goes_away_in_the_handshake_is_no_warning_and_who_speaks_something_else_is(unix, caplog):
    caplog.set_level(logging.INFO, "ringleader")
    async with await StreamTransport.open("alice", listen=[unix], on_event=(watch := Watch())):
        for garbage, fault in ((b"", "ConnectionLost"), (frame(b"RLST"), "MalformedHandshake")):
            stranger = await RawPeer.connect(unix)
            stranger.writer.write(garbage)
            if not garbage:
                stranger.writer.write_eof()
            await watch.fault(fault)
            await stranger.close()
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]


@asynchronous
async def test_what_is_sent_to_a_peer_that_has_just_gone_is_lost_without_a_word(unix, caplog):
    """All of it in the turn of the loop in which the first write fails: asyncio would warn of each that follows."""
    async with await StreamTransport.open("alice", listen=[unix], timing=QUICK, on_event=(watch := Watch())) as alice:
        peer = await RawPeer.connect(unix)
        await peer.meet(terms("bob"), "alice")
        assert await alice.next_message() == ("bob", b"")
        peer.writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        for _ in range(20):
            await alice.send_message("bob", bytes(1000))
        await watch.fault("ConnectionLost")
        await peer.close()
    assert caplog.records == []


@asynchronous
async def test_a_listener_of_events_that_fails_is_logged_and_harms_nothing(unix, caplog):
    def fails(event):
        raise RuntimeError("out of paper")

    async with pair(unix, on_event=fails) as (alice, bob):
        await alice.send_message("bob", b"x")
        assert await bob.next_message() == ("alice", b"x")
    assert "out of paper" in caplog.text


@asynchronous
async def test_a_defect_in_the_background_is_raised_to_who_waits(unix, monkeypatch):
    def breaks(*anything):
        raise ZeroDivisionError

    monkeypatch.setattr("bus.streams.transport.retry_delay", breaks)
    async with await StreamTransport.open("bob", connect={"alice": unix}) as bob:
        with pytest.raises(ZeroDivisionError):
            await bob.next_message()


@pytest.mark.parametrize(
    "wrong", [{"key": b"short"}, {"max_frame_bytes": 1023}, {"max_peers": 0}, {"max_handshakes": 0}, {"local_id": ""}]
)
@asynchronous
async def test_what_cannot_be_is_refused_when_opening(unix, wrong):
    with pytest.raises(ValueError):
        await StreamTransport.open(**{"local_id": "alice", "listen": [unix], **wrong})


def test_a_worker_that_imports_bus_does_not_load_what_streams_need():
    """The names are there all the same, and are imported when they are asked for."""
    program = """
import sys, bus
assert not {"asyncio", "ssl", "bus.streams.transport"} & sys.modules.keys(), "loaded too early"
assert set(bus.__all__) <= set(dir(bus))
assert all(getattr(bus, name) is not None for name in bus.__all__)
assert "bus.streams.transport" in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="Nothing"):
        bus.Nothing
