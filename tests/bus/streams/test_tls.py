"""TLS by the user's contexts: both ends show certificates of one authority, or there is no connection."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme

from bus import TLS, StreamTransport, TcpAddress, Timing
from tests.bus.streams.building import KEY, QUICK, RawPeer, Watch, asynchronous, frames, pair

PLACE = TcpAddress("127.0.0.1", 0)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def contexts(authority, name, *, client_must_show=True, shows=None):
    """What one end gives: `shows` is who signed its certificate."""
    certificate = (shows or authority).issue_cert(name, "127.0.0.1")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        authority.configure_trust(context)
        certificate.configure_cert(context)
    if client_must_show:
        server.verify_mode = ssl.CERT_REQUIRED
    return TLS(server, client)


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
@asynchronous
async def test_frames_pass_between_ends_with_certificates_of_one_authority(authority, key):
    sent = [bytes([number]) * size for number, size in enumerate([1, 100, 70_000, 1 << 20, 3])]
    async with pair(PLACE, tls=contexts(authority, "peer.example.org"), key=key) as (alice, bob):
        for one in sent:
            await bob.send_message("alice", one)
            await alice.send_message("bob", one)
        assert await frames(alice, len(sent)) == sent
        assert await frames(bob, len(sent)) == sent


@asynchronous
async def test_a_flooding_peer_waits_behind_tls_as_well(authority):
    async with pair(PLACE, tls=contexts(authority, "peer.example.org"), inbound_bytes=1 << 16) as (alice, bob):
        for number in range(20):
            await bob.send_message("alice", bytes([number]) * 10_000)
        assert [one[0] for one in await frames(alice, 20)] == list(range(20))


@asynchronous
async def test_an_end_whose_certificate_somebody_else_signed_is_refused_by_the_other(authority):
    here, there = Watch(), Watch()
    stranger = contexts(authority, "peer.example.org", shows=trustme.CA())
    mine = contexts(authority, "peer.example.org")
    async with (
        await StreamTransport.open("alice", listen=[PLACE], tls=mine, timing=QUICK, on_event=here) as alice,
        await StreamTransport.open(
            "mallory", connect={"alice": alice.addresses[0]}, tls=stranger, timing=QUICK, on_event=there
        ),
    ):
        await here.fault("TlsFailed")
        await there.until(lambda event: len(there.events) > 1)
        assert alice.statistics().connections == 0


@asynchronous
async def test_a_listener_whose_certificate_somebody_else_signed_is_not_talked_to(authority):
    watch = Watch()
    stranger = contexts(authority, "peer.example.org", shows=trustme.CA())
    mine = contexts(authority, "peer.example.org")
    async with (
        await StreamTransport.open("alice", listen=[PLACE], tls=stranger, timing=QUICK) as alice,
        await StreamTransport.open(
            "bob", connect={"alice": alice.addresses[0]}, tls=mine, timing=QUICK, on_event=watch
        ) as bob,
    ):
        assert "VERIFY" in (await watch.fault("TlsFailed")).cause
        assert bob.statistics().connections == 0


@asynchronous
async def test_a_certificate_for_another_host_is_refused_unless_that_is_the_expected_name(authority):
    certificate = authority.issue_cert("peer.example.org")
    tls = contexts(authority, "ignored")
    assert tls.server is not None
    certificate.configure_cert(tls.server)
    watch = Watch()
    async with await StreamTransport.open("alice", listen=[PLACE], tls=tls, timing=QUICK) as alice:
        where = {"alice": alice.addresses[0]}
        async with await StreamTransport.open("bob", connect=where, tls=tls, timing=QUICK, on_event=watch):
            await watch.fault("TlsFailed")
        named = TLS(tls.server, tls.client, server_hostname="peer.example.org")
        async with await StreamTransport.open("bob", connect=where, tls=named, timing=QUICK) as bob:
            assert await bob.next_message() == ("alice", b"")


@asynchronous
async def test_who_speaks_without_tls_is_refused_and_others_go_on(authority):
    watch = Watch()
    async with pair(PLACE, tls=contexts(authority, "peer.example.org"), on_event=watch) as (alice, bob):
        plain = await RawPeer.connect(alice.addresses[0])
        dialogue_begins = b"\x28\0\0\0RLST" + bytes(36)
        plain.writer.write(dialogue_begins)
        await plain.ended()
        await watch.fault("TlsFailed")
        await bob.send_message("alice", b"unharmed")
        assert await frames(alice, 1) == [b"unharmed"]
        await plain.close()


@asynchronous
async def test_who_never_begins_tls_is_given_up(authority):
    watch = Watch()
    timing = Timing(handshake=0.1)
    tls = contexts(authority, "peer.example.org")
    async with await StreamTransport.open("alice", listen=[PLACE], tls=tls, timing=timing, on_event=watch) as alice:
        mute = await RawPeer.connect(alice.addresses[0])
        await mute.ended()
        await watch.until(lambda event: type(event.fault).__name__ in {"HandshakeTimedOut", "ConnectionLost"})
        assert alice.statistics().handshakes == 0
        await mute.close()


@asynchronous
async def test_closing_in_the_middle_of_tls_leaves_nothing(authority):
    tls = contexts(authority, "peer.example.org")
    for rounds in range(0, 40, 2):
        alice = await StreamTransport.open("alice", listen=[PLACE], tls=tls, timing=QUICK)
        bob = await StreamTransport.open("bob", connect={"alice": alice.addresses[0]}, tls=tls, timing=QUICK)
        mute = await RawPeer.connect(alice.addresses[0])
        for _ in range(rounds):
            await asyncio.sleep(0)
        await (bob if rounds % 3 else alice).close()
        await alice.close()
        await bob.close()
        await mute.close()


@asynchronous
async def test_the_handshake_inside_tls_counts_as_well(authority):
    """A certificate of the authority is not enough where there is a key."""
    watch = Watch()
    tls = contexts(authority, "peer.example.org")
    async with (
        await StreamTransport.open("alice", listen=[PLACE], tls=tls, key=KEY, timing=QUICK, on_event=watch) as alice,
        await StreamTransport.open(
            "bob", connect={"alice": alice.addresses[0]}, tls=tls, key=b"another secret that is long", timing=QUICK
        ),
    ):
        await watch.fault("WrongKey")
