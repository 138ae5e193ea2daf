"""The least that a round trip of typed messages costs in Python: rings, doorbells, the codec and a call, no runtime.

No journal, no numbers, no routes, no state, nothing to recover: what a handler's round trip takes above this is the
runtime's, what lies below it is not to be had by Python functions that are called with objects.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from actors import Message
from actors.spinning import LONGEST
from tests.bench.channels import PATIENCE, RINGS, mapped, missing, open_channel
from tests.bench.measure import P50, P99, Case, Scale, Series
from tests.bench.pairs import Meet, run_pair
from tests.bench.transports import COLD_PAUSE, COLD_TRIPS, COLD_WARMUP, HOT_TRIPS, HOT_WARMUP

KIND = "ring, C"


class Ball(Message):
    number: int


class Player:
    """Hits back what it gets."""

    def __init__(self, send: Callable[[Ball], None]) -> None:
        self.send = send

    def on_ball(self, ball: Ball) -> None:
        self.send(Ball(ball.number + 1))


@contextmanager
def playing(there: Any, back: Any, first: bool) -> Iterator[tuple[Callable[[Ball], None], Callable[[], Ball]]]:
    """(send, receive) of one side, over a ring each way. The one who waits looks before it sleeps, as a worker does."""
    import msgspec

    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Ball).decode
    ring, bell = RINGS[KIND]
    (out_name, out_bell), (in_name, in_bell) = (there, back) if first else (back, there)
    with mapped(out_name) as out_buffer, mapped(in_name) as in_buffer, mapped(out_bell) as a, mapped(in_bell) as b:
        out, into, theirs, mine = ring(out_buffer), ring(in_buffer), bell(a), bell(b)

        def send(ball: Ball) -> None:
            out.push(encode(ball))
            theirs.ring()

        def receive() -> Ball:
            while not (records := into.take_many(64, 1 << 16)):
                if ring.waiting([into], LONGEST):
                    continue
                mine.arm()
                if not into.pending():
                    mine.wait(PATIENCE)
                mine.disarm()
            into.release()
            ball: Ball = decode(records[0])
            return ball

        yield send, receive
        for one in (out, into, theirs, mine):
            one.close()


def round_trip(pause: float, scale: Scale) -> Series:
    trips, warmup = (COLD_TRIPS, COLD_WARMUP) if pause else (HOT_TRIPS, HOT_WARMUP)
    trips = scale.count(trips, 5)
    with open_channel(KIND, scale) as there, open_channel(KIND, scale) as back:
        measured, _ = run_pair(
            (_serve, (there, back, trips, warmup, pause)), (_return, (there, back, trips + warmup)), scale.timeout
        )
    return {"trips": measured}


def _serve(meet: Meet, there: Any, back: Any, trips: int, warmup: int, pause: float) -> list[float]:
    measured = []
    with playing(there, back, True) as (send, receive):
        meet()
        for number in range(trips + warmup):
            if pause:
                time.sleep(pause)
            began = time.monotonic_ns()
            send(Ball(number))
            ball = receive()
            measured.append((time.monotonic_ns() - began) / 1e3)
            assert ball.number == number + 1
        meet()
    return measured[warmup:]


def _return(meet: Meet, there: Any, back: Any, trips: int) -> None:
    with playing(there, back, False) as (send, receive):
        player = Player(send)
        meet()
        for _ in range(trips):
            player.on_ball(receive())
        meet()


def cases() -> list[Case]:
    return [
        Case(
            title,
            "ring, codec and call alone (limit)",
            functools.partial(round_trip, pause),
            (P50, P99),
            missing=missing(KIND),
        )
        for pause, title in ((0.0, "round trip, hot"), (COLD_PAUSE, "round trip, cold"))
    ]
