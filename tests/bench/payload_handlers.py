"""Handlers that send and count messages of a given size. They measure themselves, as those of `handlers` do."""

from __future__ import annotations

import math
import time
from pathlib import Path

from actors import Handler, Message, handle
from tests.bench.handlers import LOOK, Begin, leave


class Blob(Message):
    body: bytes


class BlobSource(Handler):
    """Sends `count` messages of `size` bytes once it is told to, `call` in each `on_loop`; a pause, however short,
    makes each call a transaction of its own."""

    def __init__(self, count: int, size: int, call: int, pause: float | None = None) -> None:
        self.left = count
        self.body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        self.call = call
        self.pause = pause
        self.going = False

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.going = True

    def on_loop(self) -> float | None:
        if not self.left:
            return math.inf
        if not self.going:
            return LOOK
        send, body = self.send, self.body
        now = min(self.call, self.left)
        for _ in range(now):
            send(Blob(body))
        self.left -= now
        return self.pause


class BlobSink(Handler):
    """Times the first and the last of `count` messages."""

    def __init__(self, count: int, size: int, path: Path) -> None:
        self.count = count
        self.size = size
        self.path = path
        self.seen = 0
        self.began = 0

    @handle
    def on_blob(self, blob: Blob) -> None:
        seen = self.seen = self.seen + 1
        if len(blob.body) != self.size:
            raise ValueError(f"message {seen} has {len(blob.body)} bytes, not {self.size}")
        if seen == 1:
            self.began = time.monotonic_ns()
        elif seen == self.count:
            leave(self.path, {"seconds": (time.monotonic_ns() - self.began) / 1e9})
