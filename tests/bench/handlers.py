"""The handlers of the benchmarks. They measure themselves, by the monotonic clock, which all processes share.

What they measured they leave in a file (`leave`, `collect`); a handler that is killed keeps its notes in a mapped one.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
from pathlib import Path

import msgspec

from actors import Handler, Message, State, handle

CALL = 256  # messages that a source sends in one `on_loop`
LOOK = 0.005  # seconds; a source that waits for its start looks this often

_NOTE = struct.Struct("<QQ")  # monotonic ns of the first message of an incarnation, and its pid: written in this order
_WORD = struct.Struct("<Q")


def leave(path: Path, values: dict[str, float | list[float]]) -> None:
    """Whole or not at all: somebody waits for the file to be there."""
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(values))
    part.rename(path)


# ------------------------------------------------------------------------------------------------ one way
class Begin(Message):
    pass


class Tick(Message):
    symbol: str
    price: float
    size: int


class Sent(State):
    count: int = 0


class Source(Handler):
    """Sends `count` messages once it is told to: `call` of them in each `on_loop`, `pause` seconds apart."""

    state: Sent

    def __init__(self, count: float, path: Path, call: int = CALL, pause: float | None = None) -> None:
        self.count = count
        self.path = path
        self.call = call
        self.pause = pause
        self.going = False
        self.began = 0

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.going = True
        self.began = time.process_time_ns()

    def on_loop(self) -> float | None:
        state = self.state
        if state.count >= self.count:
            return math.inf
        if not self.going and not state.count:
            return LOOK
        send = self.send
        for number in range(state.count, state.count + self.call):
            send(Tick("RNGL", 101.25, number))
        state.count += self.call
        if state.count >= self.count:
            leave(self.path, {"cpu_ns": time.process_time_ns() - self.began})
        return self.pause


class Sink(Handler):
    """Times the first and the last of `count` messages."""

    def __init__(self, count: int, path: Path) -> None:
        self.count = count
        self.path = path
        self.seen = 0
        self.began = (0, 0)

    @handle
    def on_tick(self, tick: Tick) -> None:
        seen = self.seen = self.seen + 1
        if seen == 1:
            self.began = (time.monotonic_ns(), time.process_time_ns())
        elif seen == self.count:
            elapsed, cpu = time.monotonic_ns() - self.began[0], time.process_time_ns() - self.began[1]
            leave(self.path, {"seconds": elapsed / 1e9, "cpu_ns": cpu, "last": tick.size})


# ------------------------------------------------------------------------------------------------ round trips
class Ball(Message):
    number: int


class Back(Message):
    number: int


class Server(Handler):
    """Sends the ball and times its return: at once again, or every `pause` seconds."""

    def __init__(self, trips: int, warmup: int, pause: float, path: Path) -> None:
        self.left = trips + warmup
        self.warmup = warmup
        self.pause = pause
        self.path = path
        self.going = False
        self.sent_at = 0
        self.measured: list[float] = []

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.going = True
        if not self.pause:
            self.serve()

    def on_loop(self) -> float:
        if not self.pause or not self.left:
            return math.inf
        if self.going and not self.sent_at:
            self.serve()
        return self.pause

    def serve(self) -> None:
        self.sent_at = time.monotonic_ns()
        self.send(Ball(self.left))

    @handle
    def on_back(self, back: Back) -> None:
        self.measured.append((time.monotonic_ns() - self.sent_at) / 1e3)
        self.sent_at = 0
        self.left -= 1
        if not self.left:
            leave(self.path, {"trips": self.measured[self.warmup :]})
        elif not self.pause:
            self.serve()


class Returner(Handler):
    @handle
    def on_ball(self, ball: Ball) -> None:
        self.send(Back(ball.number))


# ------------------------------------------------------------------------------------------------ kill
class Seen(State):
    count: int = 0


class Victim(Handler):
    """Notes the time of the first message of each of its incarnations, and that no message is missing or doubled."""

    state: Seen

    def __init__(self, path: Path) -> None:
        self.path = path
        self.noted = False

    def on_start(self) -> None:
        with self.path.open("r+b") as file:
            self.note = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    @handle
    def on_tick(self, tick: Tick) -> None:
        if tick.size != self.state.count:
            raise ValueError(f"message {tick.size} came where {self.state.count} was the next")
        self.state.count += 1
        if not self.noted:
            self.noted = True
            _WORD.pack_into(self.note, 0, time.monotonic_ns())
            _WORD.pack_into(self.note, 8, os.getpid())


class Note:
    """The other side of a victim's notes."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def read(self) -> tuple[int, int]:
        """(monotonic ns, pid) of the incarnation that handled a message last; 0, 0 while there is none."""
        _, pid = _NOTE.unpack_from(self._map)
        at, again = _NOTE.unpack_from(self._map)
        return (at, pid) if pid == again else (0, 0)

    def close(self) -> None:
        self._map.close()


# ------------------------------------------------------------------------------------------------ idle
class Token(Message):
    hops: int


class Idler(Handler):
    @handle
    def on_token(self, token: Token) -> None:
        if token.hops:
            self.send(Token(token.hops - 1))
