"""Handlers of systems of more than two workers. They measure themselves, as those of `handlers` do."""

from __future__ import annotations

import math
import time
from pathlib import Path

from actors import Handler, Message, handle
from tests.bench.handlers import LOOK, Begin, Tick, leave


class Relay(Handler):
    """Sends on what it gets, and leaves what processor time `count` messages took."""

    def __init__(self, count: int, path: Path) -> None:
        self.count = count
        self.path = path
        self.seen = 0
        self.began = 0

    @handle
    def on_tick(self, tick: Tick) -> None:
        self.send(tick)
        seen = self.seen = self.seen + 1
        if seen == 1:
            self.began = time.process_time_ns()
        elif seen == self.count:
            leave(self.path, {"cpu_ns": time.process_time_ns() - self.began})


class Spray(Message):
    sender: int
    number: int


class Node(Handler):
    """One of `nodes` handlers, each of which sends every one of the others `count` messages, and gets as many."""

    def __init__(self, me: int, nodes: int, count: int, path: Path) -> None:
        self.me = me
        self.count = count
        self.path = path
        self.next = [0] * nodes
        self.left = (nodes - 1) * count
        self.sent = 0
        self.began = 0

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.began = time.monotonic_ns()

    def on_loop(self) -> float | None:
        if self.sent == self.count:
            return math.inf
        if not self.began:
            return LOOK
        self.send(Spray(self.me, self.sent))
        self.sent += 1
        return None

    @handle
    def on_spray(self, spray: Spray) -> None:
        if spray.number != self.next[spray.sender]:
            raise ValueError(f"message {spray.number} of {spray.sender} where {self.next[spray.sender]} was the next")
        self.next[spray.sender] += 1
        self.left -= 1
        if not self.left:
            leave(self.path, {"began": self.began, "ended": time.monotonic_ns()})
