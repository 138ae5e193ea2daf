"""What can be chosen when an ILM is opened, and how to await the opening."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from persist.ilm.errors import ILMError
from persist.ilm.flight import FRAME_BYTES
from persist.ilm.message import PeerId


class Options(TypedDict, total=False):
    """
    outbox_limit       bytes committed and not acknowledged per peer, over which senders wait
    window             bytes published and not acknowledged per peer
    inbox_limit        bytes arrived and not delivered per peer; twice the window if not given
    retry              seconds without progress until a peer is asked what it has: the first, and the longest
    batch              messages delivered per commit, at most
    delivery_attempts  how often the target fails on a message before its peer rests
    delivery_retry     seconds between these: the first, and the longest
    on_problem         called with the peer (None: all) and the error of what the user should know; logged otherwise
    linger             seconds that leaving `async with` waits for acknowledgements
    """

    outbox_limit: int
    window: int
    inbox_limit: int
    retry: tuple[float, float]
    batch: int
    delivery_attempts: int
    delivery_retry: tuple[float, float]
    on_problem: Callable[[PeerId | None, ILMError], None]
    linger: float


@dataclass(frozen=True, slots=True)
class Settings:
    """The options with what holds where nothing was chosen."""

    outbox_limit: int = 64 << 20
    window: int = 1 << 20
    inbox_limit: int | None = None
    retry: tuple[float, float] = (0.05, 5.0)
    batch: int = 256
    delivery_attempts: int = 10
    delivery_retry: tuple[float, float] = (0.05, 5.0)
    on_problem: Callable[[PeerId | None, ILMError], None] | None = None
    linger: float = 1.0

    def __post_init__(self) -> None:
        if any(map(inspect.iscoroutinefunction, (self.on_problem, type(self.on_problem).__call__))):
            raise TypeError("on_problem is a coroutine function: give a plain function, it is called and not awaited")
        for name in ("outbox_limit", "window", "batch", "delivery_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.inbox_limit is not None and self.inbox_limit < FRAME_BYTES:
            raise ValueError(f"inbox_limit is {self.inbox_limit}: give at least {FRAME_BYTES}")
        for name in ("retry", "delivery_retry"):
            first, last = getattr(self, name)
            if not 0 < first <= last:
                raise ValueError(f"{name} is {first}, {last}: give the first delay, above 0, and the longest")


class Opened(Protocol):
    """What an opening gives."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...


T = TypeVar("T", bound=Opened)


class Opening(Generic[T]):
    """To be awaited, or entered by `async with`; once."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._start = start
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._start().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._start()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(kind, error, where)
