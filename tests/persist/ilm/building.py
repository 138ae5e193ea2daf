"""What the tests of ILM are built from: scenarios with a deadline, backends and transports that fail when told to."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

from persist.ilm.backend import Change
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.delivery import Effects
from persist.ilm.errors import ILMError, StorageFull
from persist.ilm.facade import ILM
from persist.ilm.memory_network import MemoryNetwork
from persist.ilm.message import ILMMessage, PeerId
from persist.ilm.transport import Transport

DEADLINE = 100.0
QUICK = {"retry": (0.01, 0.1), "delivery_retry": (0.001, 0.01), "linger": 0.05}  # options for impatient tests

P = ParamSpec("P")


def scenario(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Runs an async test within the deadline; it must leave no task behind."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE):
                await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left behind: {left}"

        asyncio.run(limited())

    return run


async def until(condition: Callable[[], object]) -> None:
    """Returns as soon as it holds; the scenario has a deadline."""
    while not condition():
        await asyncio.sleep(0.001)


@contextmanager
def no_timers() -> Iterator[None]:
    """The clock of the loop stands still, so that no timer of any kind ends: what is done all the same waits for none,
    however fast the machine is."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    loop.time = lambda: now  # type: ignore[method-assign]
    try:
        yield
    finally:
        del loop.time


async def turns_until(condition: Callable[[], object], most: int = 200) -> int:
    """In so many turns of the loop it came to hold."""
    for count in range(most):
        if condition():
            return count
        await asyncio.sleep(0)
    raise AssertionError(f"not within {most} turns")


class Got:
    """A delivery target that keeps what it gets, and may be told to wait or to fail."""

    def __init__(self) -> None:
        self.messages: list[ILMMessage] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fail: Callable[[ILMMessage], bool] = lambda message: False
        self.calls: list[int] = []

    async def __call__(self, message: ILMMessage) -> None:
        self.calls.append(message.message_id)
        await self.open.wait()
        if self.fail(message):
            raise OSError(f"no {message.message_id}")
        self.messages.append(message)

    @property
    def contents(self) -> list[bytes]:
        return [message.contents for message in self.messages]

    @property
    def ids(self) -> list[int]:
        return [message.message_id for message in self.messages]


class Problems:
    """An `on_problem` that keeps them."""

    def __init__(self) -> None:
        self.found: list[tuple[PeerId | None, ILMError]] = []

    def __call__(self, peer: PeerId | None, error: ILMError) -> None:
        self.found.append((peer, error))

    def kinds(self) -> list[type[ILMError]]:
        return [type(error) for _, error in self.found]


class FlakyBackend(MemoryBackend):
    """`refuse`: raises what a commit shall raise; `lose`: commits, and raises then all the same (the process dies)."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: Callable[[Change], None] = lambda change: None
        self.commits: list[Change] = []

    def commit(self, change: Change) -> int:
        self.refuse(change)
        self.commits.append(change)
        return super().commit(change)


class PowerBackend(FlakyBackend):
    """At level power: a sync returns when `may_sync` is set."""

    durability = "power"

    def __init__(self) -> None:
        super().__init__()
        self.may_sync = asyncio.Event()
        self.may_sync.set()
        self.syncs = 0

    async def sync(self) -> None:
        await super().sync()
        self.syncs += 1
        await self.may_sync.wait()


def full(change: Change) -> None:
    if change.sends:
        raise StorageFull("the messages of a test")


def broken(change: Change) -> None:
    raise OSError("the disk is gone")


class Wrapped:
    """A transport with its frames looked at, changed or dropped on their way out, and in."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.sent: list[tuple[PeerId, bytes]] = []
        self.keep_out: Callable[[bytes], bool] = lambda frame: False
        self.keep_in: Callable[[bytes], bool] = lambda frame: False
        self.fail: Exception | None = None
        self.open = asyncio.Event()  # frames on their way out wait for it
        self.open.set()

    @property
    def local_id(self) -> PeerId:
        return self.inner.local_id

    @property
    def max_frame_bytes(self) -> int:
        return self.inner.max_frame_bytes

    def connected_peers(self) -> Collection[PeerId]:
        return self.inner.connected_peers()

    async def send_message(self, peer: PeerId, frame: bytes) -> None:
        if self.fail:
            raise self.fail
        await self.open.wait()
        if not self.keep_out(frame):
            self.sent.append((peer, frame))
            await self.inner.send_message(peer, frame)

    async def next_message(self) -> tuple[PeerId, bytes]:
        while True:
            peer, frame = await self.inner.next_message()
            if not self.keep_in(frame):
                return peer, frame

    async def close(self) -> None:
        await self.inner.close()


class Two:
    """Peers "a" and "b" on one network, each with a backend that outlives it."""

    def __init__(self, **faults: Any) -> None:
        self.network = MemoryNetwork(**faults)
        self.backends: dict[PeerId, FlakyBackend] = {"a": FlakyBackend(), "b": FlakyBackend()}
        self.got: dict[PeerId, Got] = {"a": Got(), "b": Got()}
        self.problems: dict[PeerId, Problems] = {"a": Problems(), "b": Problems()}
        self.transports: dict[PeerId, Wrapped] = {}

    async def open(self, peer: PeerId, deliver: Any = None, **options: Any) -> ILM[ILMMessage]:
        """The ILM of one of them, over what it left the last time."""
        self.transports[peer] = Wrapped(self.network.join(peer))
        return await ILM.open(
            self.backends[peer],
            self.got[peer] if deliver is None else deliver,
            self.transports[peer],
            **{**QUICK, "on_problem": self.problems[peer], **options},
        )


async def kill(ilm: ILM[Any]) -> None:
    """As if the process had died: nothing more is committed, sent or waited for."""
    peerings = ilm._peerings
    await peerings.close()
    ilm._is_shutting_down = True


def counting(state: dict[str, ILM[Any]]) -> Callable[[ILMMessage], Effects]:
    """A target that counts the messages of each source in a value of its own ILM, `state["ilm"]`."""

    def deliver(message: ILMMessage) -> Effects:
        key = f"count {message.source_id}"
        before = int(state["ilm"].get(key) or b"0")
        return Effects(put={key: b"%d" % (before + 1)})

    return deliver
