"""ILM over real connections that break again and again: every message once and in order, both ways."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from bus import StreamTransport, TcpAddress, UnixAddress
from bus.streams.errors import ConnectionLost
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.facade import ILM
from tests.bus.streams.building import KEY, QUICK, asynchronous

COUNT = 3_000
CUTS = 25


@pytest.mark.parametrize("kind", ["unix", "tcp with a key", "both connect"])
@asynchronous
async def test_messages_outlive_their_connections(tmp_path, kind):
    tmp_path.chmod(0o700)
    dice = Random(7)
    here = TcpAddress("127.0.0.1", 0) if kind.startswith("tcp") else UnixAddress(str(tmp_path / "alice"))
    key = KEY if kind.startswith("tcp") else None
    there = [UnixAddress(str(tmp_path / "bob"))] if kind == "both connect" else []
    alice = await StreamTransport.open(
        "alice", listen=[here], connect=dict(zip(["bob"], there, strict=False)), key=key, timing=QUICK
    )
    bob = await StreamTransport.open("bob", listen=there, connect={"alice": alice.addresses[0]}, key=key, timing=QUICK)
    got: dict[str, list[int]] = {"alice": [], "bob": []}

    async def send(ilm, peer):
        for number in range(COUNT):
            await ilm.send_to(peer, b"%d" % number)
            if number % 50 == 0:
                await asyncio.sleep(0.001)

    async def cut():
        for _ in range(CUTS):
            end = dice.choice([alice, bob])
            while not end._peers:  # there must be a connection to cut, however long the last one takes to come back
                await asyncio.sleep(0.001)
            for connection in list(end._peers.values()):
                connection.end(ConnectionLost("cut"))
            await asyncio.sleep(dice.random() * 0.04)

    async with (
        ILM.open(MemoryBackend(), lambda message: got["alice"].append(int(message.contents)), alice) as first,
        ILM.open(MemoryBackend(), lambda message: got["bob"].append(int(message.contents)), bob) as second,
    ):
        await asyncio.gather(send(first, "bob"), send(second, "alice"), cut())
        while first.pending() or second.pending():
            await asyncio.sleep(0.005)
    assert got == {"alice": list(range(COUNT)), "bob": list(range(COUNT))}
    assert alice.statistics().connections > CUTS / 3
