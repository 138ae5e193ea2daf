"""What tests of stream transports are made of: a deadline around them, events to await, and ends that misbehave."""

from __future__ import annotations

import asyncio
import functools
import gc
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from bus import StreamEvent, StreamTransport, TcpAddress, Timing, UnixAddress
from bus.streams.addresses import Address, PeerId
from bus.streams.frames import FrameBuffer, frame
from bus.streams.handshake import Dialogue, Session, Terms, acceptor, connector

DEADLINE = 100.0
KEY = b"a secret of 32 bytes, or thereby"
QUICK = Timing(handshake=60.0, heartbeat=0.5, retry_first=0.01, retry_longest=0.05, linger=0.5)
RESTLESS = Timing(handshake=60.0, heartbeat=0.04, retry_first=0.01, retry_longest=0.05, linger=0.2)

T = TypeVar("T")


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs an async test, within the deadline; whoever leaves a task behind fails."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def within() -> None:
            async with asyncio.timeout(DEADLINE):
                await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left behind: {left}"

        asyncio.run(within())
        gc.collect()  # a socket that nobody closed warns now

    return run


class Watch:
    """The events of one transport."""

    def __init__(self) -> None:
        self.events: list[Any] = []  # StreamEvents
        self._more = asyncio.Event()

    def __call__(self, event: StreamEvent) -> None:
        self.events.append(event)
        self._more.set()

    async def until(self, matches: Callable[[Any], object]) -> Any:
        """The first event that does, of all so far and to come."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if matches(event):
                    return event
            seen = len(self.events)
            self._more.clear()
            await self._more.wait()

    async def fault(self, name: str) -> Any:
        """The first fault of this class."""
        return (await self.until(lambda event: type(getattr(event, "fault", None)).__name__ == name)).fault

    def forget(self) -> None:
        self.events.clear()


async def open_pair(address: Address, **options: Any) -> tuple[StreamTransport, StreamTransport]:
    """alice listens, bob connects, and both know it."""
    options = {"timing": QUICK, **options}
    alice = await StreamTransport.open("alice", listen=[address], **options)
    bob = await StreamTransport.open("bob", connect={"alice": alice.addresses[0]}, **options)
    assert await alice.next_message() == ("bob", b"")
    assert await bob.next_message() == ("alice", b"")
    return alice, bob


@asynccontextmanager
async def pair(address: Address, **options: Any) -> AsyncIterator[tuple[StreamTransport, StreamTransport]]:
    alice, bob = await open_pair(address, **options)
    try:
        yield alice, bob
    finally:
        await bob.close()
        await alice.close()


async def take(transport: StreamTransport, count: int) -> list[tuple[PeerId, bytes]]:
    return [await transport.next_message() for _ in range(count)]


async def frames(transport: StreamTransport, count: int) -> list[bytes]:
    """The next so many contents, whoever sent them; connections are passed over."""
    found: list[bytes] = []
    while len(found) < count:
        _, contents = await transport.next_message()
        if contents:
            found.append(contents)
    return found


def terms(local_id: PeerId, *, key: bytes = b"", sealed: bool = False, **changes: Any) -> Terms:
    given: dict[str, Any] = {"instance": secrets.randbits(64), "max_frame_bytes": 1 << 20, "heartbeat_ms": 500}
    return Terms(local_id, key=key, sealed=sealed, **{**given, **changes})


class RawPeer:
    """An end of a connection that speaks the protocol by hand, as far as it wants to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.buffer = FrameBuffer(1 << 21)

    @classmethod
    async def connect(cls, address: Address) -> RawPeer:
        if isinstance(address, UnixAddress):
            return cls(*await asyncio.open_unix_connection(address.path))
        assert isinstance(address, TcpAddress)
        return cls(*await asyncio.open_connection(address.host, address.port))

    async def shake_hands(self, dialogue: Dialogue) -> Session:
        message = next(dialogue)
        while True:
            if message:
                self.send(message)
            heard = await self.hear()
            assert heard is not None, "the other end closed"
            try:
                message = dialogue.send(heard)
            except StopIteration as done:
                session: Session
                session, last = done.value
                if last:
                    self.send(last)
                return session

    async def meet(self, mine: Terms, wanted: PeerId) -> Session:
        return await self.shake_hands(connector(mine, secrets.token_bytes(32), wanted))

    async def be_met(self, mine: Terms) -> Session:
        return await self.shake_hands(acceptor(mine, secrets.token_bytes(32), lambda session: None))

    def send(self, contents: bytes) -> None:
        self.writer.write(frame(contents))

    async def hear(self) -> Any:
        """The next contents; None at the end."""
        while (contents := self.buffer.take()) is None:
            data = await self.reader.read(1 << 16)
            if not data:
                return None
            while data:
                room = self.buffer.room()
                count = min(len(room), len(data))
                room[:count] = data[:count]
                self.buffer.filled(count)
                data = data[count:]
        return contents

    async def ended(self) -> None:
        """Returns when the other end has closed."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass
