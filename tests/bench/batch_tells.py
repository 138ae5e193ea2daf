"""Tells to a batch handler. Apart from `systems`, for revisions that know none."""

from __future__ import annotations

import time
from pathlib import Path

from actors import Handler, handle
from tests.bench import systems
from tests.bench.handlers import Source, Tick, leave
from tests.bench.measure import Case


class BatchSink(Handler):
    """Times the first and the last of `count` messages."""

    def __init__(self, count: int, path: Path) -> None:
        self.count = count
        self.path = path
        self.seen = 0
        self.began = (0, 0)

    @handle(batch=True)
    def on_ticks(self, ticks: list[Tick]) -> None:
        if not self.seen:
            self.began = (time.monotonic_ns(), time.process_time_ns())
        self.seen += len(ticks)
        if self.seen == self.count:
            elapsed, cpu = time.monotonic_ns() - self.began[0], time.process_time_ns() - self.began[1]
            leave(self.path, {"seconds": elapsed / 1e9, "cpu_ns": cpu, "last": ticks[-1].size})


def cases() -> list[Case]:
    return systems.tells(systems.Form(", batch handler", Tick, Source.spec, BatchSink.spec))
