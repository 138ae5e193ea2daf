"""A sender and a receiver whose rings the tests choose, in one process or, as a script, in one that is killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from actors import FixedMessage, Handler, Message, Rows, State, System, Topology, handle
from actors.fixed import u8
from actors.status_types import EdgeStatus

from .waiting import until


class Order(Message):
    """So many blocks of so many bytes are to be sent."""

    count: int
    size: int
    rows: int = 0


class Block(Message):
    n: int
    data: bytes


class Row(FixedMessage):
    n: u8
    twice: u8


class Question(Message):
    pass


class Answer(Message):
    blocks: int
    rows: int
    in_order: bool
    data: bytes = b""


class Sent(State):
    n: int = 0
    rows: int = 0


class Got(State):
    n: int = 0
    rows: int = 0
    in_order: bool = True


class Sender(Handler):
    """Ten blocks for each time that the order comes by, which goes round a cycle: nothing ever pauses that."""

    state: Sent

    @handle
    def on_order(self, order: Order) -> None:
        for _ in range(min(10, order.count)):
            self.state.n += 1
            self.send(Block(self.state.n, bytes(order.size)))
        if order.count > 10:
            self.send(Order(order.count - 10, order.size, order.rows))
        elif order.rows:
            with self.reserve(Row, order.rows) as rows:
                rows["n"] = range(self.state.rows + 1, self.state.rows + order.rows + 1)
                rows["twice"] = rows["n"] * 2
            self.state.rows += order.rows


class Returner(Handler):
    @handle
    def on_order(self, order: Order) -> None:
        self.send(order)


class Receiver(Handler):
    state: Got

    @handle
    def on_block(self, block: Block) -> None:
        self.state.n += 1
        self.state.in_order &= block.n == self.state.n

    @handle(batch=True)
    def on_rows(self, rows: Rows[Row]) -> None:
        self.state.in_order &= int(rows["n"][0]) == self.state.rows + 1 and bool((rows["twice"] == rows["n"] * 2).all())
        self.state.rows += len(rows)

    @handle
    def on_question(self, question: Question) -> None:
        self.reply(Answer(self.state.n, self.state.rows, self.state.in_order))


def app(directory: Path | str, edge: int | None = None, **options: Any) -> Topology:
    """`edge`: the size of the ring from the one worker to the other."""
    topology = Topology("ringed", directory=directory, **options)
    topology.worker("begin", sender=Sender)
    topology.worker("middle", returner=Returner)
    topology.worker("end", receiver=Receiver)
    topology.route("sender", Order, to="returner")
    topology.route("returner", Order, to="sender")
    topology.route("sender", (Block, Row), to="receiver", ring_bytes=edge)
    topology.external("sender", Order)
    topology.external("receiver", Question)
    return topology


def edge_of(system: System) -> EdgeStatus:
    return next(one for one in system.status().edges if (one.source, one.target) == ("begin", "end"))


if __name__ == "__main__":
    with app(sys.argv[1], int(sys.argv[2])).start() as system:
        system.pause("end")
        count, size, rows = map(int, sys.argv[3:])
        system.send("sender", Order(count, size, rows))
        until(lambda: edge_of(system).committed == count + rows, "all to be committed")
        print("sent", flush=True)
        sys.stdin.read()
