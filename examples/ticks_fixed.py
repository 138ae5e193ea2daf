"""A million records that are never copied: written in place by one process, read in place by another.

Needs NumPy: pip install 'ringleader[numpy]'.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np

from actors import FixedMessage, Handler, Message, Rows, Size, State, Topology, handle
from actors.fixed import f8, u4

BATCH, BATCHES = 10_000, 100


class Tick(FixedMessage):
    symbol: Annotated[bytes, Size(8)]
    price: f8
    size: u4


class GetTurnover(Message):
    pass


class Turnover(Message):
    ticks: int
    euros: float


class Sent(State):
    batches: int = 0


class Feed(Handler):
    state: Sent

    def on_loop(self) -> float | None:
        if self.state.batches == BATCHES:
            return math.inf
        with self.reserve(Tick, BATCH) as rows:  # an array in the ring itself
            rows["symbol"] = b"RNGL"
            rows["price"] = 2.5
            rows["size"] = np.arange(BATCH) % 10
        self.state.batches += 1
        return None


class Sums(Handler):
    def __init__(self) -> None:
        self.ticks, self.euros = 0, 0.0

    @handle(batch=True)
    def on_ticks(self, ticks: Rows[Tick]) -> None:  # a read-only array over the ring, lent for this call
        self.ticks += len(ticks)
        self.euros += float(ticks["price"] @ ticks["size"])

    @handle
    def on_get(self, get: GetTurnover) -> None:
        self.reply(Turnover(self.ticks, self.euros))


def topology(directory: Path) -> Topology:
    app = Topology("ticks", directory=directory, durability="memory")
    app.worker("ingest", feed=Feed)
    app.worker("stats", sums=Sums)
    app.route("feed", Tick, to="sums")
    app.external("sums", GetTurnover)
    return app


def main(directory: Path) -> None:
    with topology(directory).start() as system:
        found = system.ask("sums", GetTurnover(), reply=Turnover)
        while found.ticks < BATCH * BATCHES:
            found = system.ask("sums", GetTurnover(), reply=Turnover)
    print(f"{found.ticks} ticks, {found.euros:.2f} EUR")


if __name__ == "__main__":
    with TemporaryDirectory(prefix="ringleader-ticks-") as temporary:
        main(Path(temporary) / "run")
