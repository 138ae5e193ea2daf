"""A record in a ring that cannot be what its sender wrote: who reads it says so, and whose fault it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from actors import ExitStatus, Handler, Message, State, System, Topology, handle
from actors.codec import pack_header
from actors.plan import GATEWAY, Plan
from actors.rundir import RunDirectory
from actors.wiring import ring_name
from bus import Ring, Segment
from persist import read


class Number(Message):
    n: int


class Get(Message): ...


class Seen(Message):
    numbers: list[int]


class Done(State):
    numbers: list[int] = []


class Sink(Handler):
    state: Done

    @handle
    def on_number(self, number: Number) -> None:
        self.state.numbers.append(number.n)

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.numbers))


def system_of(directory: Path) -> tuple[Plan, System]:
    app = Topology("damaged", directory=directory, max_restarts=1, backoff_first=0.001)
    app.worker("w", sink=Sink)
    app.external("sink")
    plan = app.compile()
    return plan, System(plan, directory)


def push(plan: Plan, directory: Path, *record: bytes) -> None:
    """Into the ring from outside to the worker, behind all that is in it."""
    with RunDirectory.open(directory, create=False) as opened:
        identity = opened.read_identity()
    assert identity is not None
    edge = plan.edge(GATEWAY, "w")
    assert edge is not None
    segment = Segment.attach(ring_name(identity.run_id, edge))
    ring = Ring(segment.buf)
    assert ring.push(*record)
    ring.close()
    segment.close()


def numbers(*given: int) -> bytes:
    return msgspec.msgpack.encode([Number(n) for n in given])


def route_of(plan: Plan) -> int:
    return next(route.id for route in plan.routes if route.message is Number)


DAMAGED: dict[str, tuple[Callable[[int], tuple[bytes, bytes]], str]] = {
    "no messages": (lambda route: (pack_header(3, 0, route, 0), b"\x90"), "it is a run of 0 messages from 3 on"),
    "no number": (lambda route: (pack_header(0, 1, route, 0), numbers(1)), "it is a run of 1 messages from 0 on"),
    "no route": (lambda route: (pack_header(3, 1, 999, 0), numbers(5)), "there is no route 999"),
    "fewer": (lambda route: (pack_header(3, 3, route, 0), numbers(5, 6)), "its header says 3 messages, not 2"),
    "more": (lambda route: (pack_header(3, 1, route, 0), numbers(5, 6)), "its header says 1 messages, not 2"),
    "torn": (lambda route: (pack_header(3, 2, route, 0), numbers(5, 6)[:-1]), "not a run of messages"),
    "short": (lambda route: (b"12345", b"67890"), "shorter than the 16 bytes of its header"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_run_that_cannot_be_ends_its_worker_and_names_the_ring_not_the_journal(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes again, so in the end the supervisor gives up. Nothing of it, and nothing behind it, was handled."""
    directory = tmp_path / "run"
    record, told = DAMAGED[damage]
    plan, system = system_of(directory)
    with system.start():
        system.send("sink", Number(1))
        assert system.ask("sink", Get(), reply=Seen, timeout=30).numbers == [1]
        push(plan, directory, *record(route_of(plan)))
        system.block("w").doorbell.ring()
        assert system.join(30) is ExitStatus.GAVE_UP
    assert caplog.text.count("worker 'w' died") == 2
    last = caplog.text[caplog.text.rindex("gave up on worker 'w'") :]
    assert "exit code 1 (CRASHED)" in last
    assert "BadRecord: a record of " in last
    assert told in last
    assert damage == "short" or "in the ring from 'gateway'" in last
    left = read(directory / "journals" / "w")
    assert (left.watermarks["gateway"], left.dead) == (2, [])
