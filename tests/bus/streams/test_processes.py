"""Between processes, one of which is killed, or stopped, at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from bus import AddressInUse, StreamTransport, UnixAddress
from tests.bus.streams.building import QUICK, RESTLESS, Watch, asynchronous, frames


@pytest.fixture
def unix(tmp_path):
    tmp_path.chmod(0o700)
    return UnixAddress(str(tmp_path / "alice.sock"))


async def start(address):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bus.streams.peer", address.path, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"listening\n"
    return process


async def end(process):
    process.kill()
    await process.communicate()
    process._transport.close()


@asynchronous
async def test_a_killed_peer_is_noticed_at_once_and_found_again_when_it_is_back(unix):
    watch = Watch()
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=QUICK, on_event=watch) as bob:
        for _ in range(2):
            process = await start(unix)
            assert await bob.next_message() == ("alice", b"")
            for number in range(10):
                await bob.send_message("alice", b"%d" % number)
            assert [int(one) for one in await frames(bob, 10)] == list(range(10))
            await end(process)
            await watch.fault("ConnectionLost")
            assert os.path.exists(unix.path), "it died, and could not remove its socket file"
            watch.forget()


@asynchronous
async def test_a_peer_killed_in_the_middle_of_a_flood_harms_nobody(unix):
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=QUICK) as bob:
        process = await start(unix)
        assert await bob.next_message() == ("alice", b"")
        flooding = asyncio.create_task(flood(bob))
        await frames(bob, 20)
        await end(process)
        process = await start(unix)
        while (await bob.next_message())[1]:
            pass
        await frames(bob, 20)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        await end(process)


async def flood(transport):
    while True:
        await transport.send_message("alice", bytes(50_000))
        await asyncio.sleep(0)


@asynchronous
async def test_a_stopped_peer_is_silent_and_comes_back_when_it_runs_again(unix):
    watch = Watch()
    process = await start(unix)
    async with await StreamTransport.open("bob", connect={"alice": unix}, timing=RESTLESS, on_event=watch) as bob:
        assert await bob.next_message() == ("alice", b"")
        process.send_signal(signal.SIGSTOP)
        fault = await watch.fault("PeerSilent")
        assert fault.seconds >= RESTLESS.missed * 0.1
        process.send_signal(signal.SIGCONT)
        assert await bob.next_message() == ("alice", b"")
        # On a machine that lets it wait for its turn it may be silent for that long again, and a frame be lost.
        answer = asyncio.create_task(frames(bob, 1))
        while not answer.done():
            await bob.send_message("alice", b"well?")
            await asyncio.wait([answer], timeout=0.05)
        assert await answer == [b"well?"]
    await end(process)


@asynchronous
async def test_a_living_process_keeps_its_place(unix):
    process = await start(unix)
    with pytest.raises(AddressInUse):
        await StreamTransport.open("alice", listen=[unix])
    async with await StreamTransport.open("bob", connect={"alice": unix}) as bob:
        assert await bob.next_message() == ("alice", b"")
    await end(process)
