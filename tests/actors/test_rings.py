"""Rings of different sizes in one system: who says how large they are, and that nothing depends on it but room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import psutil
import pytest

from actors import ExitStatus, FixedMessage, Handler, RingsDoNotFit, Size, StartFailed, System, Topology, handle
from actors.fixed import u8
from actors.plan import GATEWAY, Plan
from actors.ring_sizes import largest_message
from bus import Field
from tests.actors.ringed import Answer, Block, Order, Question, Receiver, Row, Sender, app, edge_of

from .waiting import dead_within, until

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def declared(**options: Any) -> Topology:
    """Two senders in one worker, two receivers, each in one of its own."""
    topology = Topology("sized", **options)
    topology.worker("begin", one=Sender, two=Sender)
    topology.worker("end", receiver=Receiver)
    topology.worker("other", another=Receiver)
    return topology


def sizes(plan: Plan) -> dict[str, int]:
    return {edge.name: edge.ring_bytes for edge in plan.edges}


def routed(topology: Topology, **rings: Any) -> Topology:
    for name in ("one", "two"):
        topology.route(name, Order, to=[])
        topology.route(name, (Block, Row), to=["receiver", "another"], ring_bytes=rings.get(name))
    topology.external("one", Order, ring_bytes=rings.get("external"))
    topology.external("two", Order)
    topology.external("receiver", Question)
    topology.external("another", Question)
    return topology


# ------------------------------------------------------------------------------------------------ who says it
def test_a_ring_is_a_mebibyte_where_nobody_says_and_four_with_rows() -> None:
    found = sizes(routed(declared()).compile())
    assert found == {name: 4 * MIB if name in {"begin>end", "begin>other"} else MIB for name in found}


def test_a_ring_is_as_large_as_its_messages_need() -> None:
    plan = routed(declared(max_message_bytes=MIB)).compile()
    assert set(sizes(plan).values()) == {4 * MIB}
    assert {edge.least_ring for edge in plan.edges} == {4 * MIB}


def test_the_route_comes_before_the_worker_and_the_worker_before_the_topology() -> None:
    topology = routed(declared(ring_bytes=1 << 16), one=1 << 14, external=1 << 13)
    topology.process("end", ring_bytes=1 << 15)
    topology.process("begin", ring_bytes=1 << 17)
    plan = topology.compile()
    assert sizes(plan) == {
        "gateway>begin": 1 << 13,
        "gateway>end": 1 << 15,
        "gateway>other": 1 << 16,
        "begin>gateway": 1 << 16,
        "end>gateway": 1 << 16,
        "other>gateway": 1 << 16,
        "begin>end": 1 << 14,
        "begin>other": 1 << 14,
    }
    assert all(edge.least_ring == edge.ring_bytes for edge in plan.edges), "what was given is not made smaller"


def test_routes_that_share_a_ring_get_the_largest_of_their_sizes() -> None:
    for first, second in ((1 << 14, 1 << 15), (1 << 15, 1 << 14)):
        assert sizes(routed(declared(), one=first, two=second).compile())["begin>end"] == 1 << 15


def test_only_rings_of_answers_have_to_hold_the_largest_message_where_others_have_claims() -> None:
    least = {edge.name: edge.least_ring for edge in routed(declared()).compile().edges}
    assert least == {name: MIB if name.endswith(f">{GATEWAY}") else 1 << 14 for name in least}
    assert {edge.least_ring for edge in routed(declared(max_claim_bytes=0)).compile().edges} == {MIB}


# ------------------------------------------------------------------------------------------------ mistakes
def told(topology: Topology) -> list[tuple[str, str, str]]:
    with pytest.raises(Exception) as caught:
        topology.compile()
    return [(problem.kind, problem.subject, f"{problem.text}; {problem.hint}") for problem in caught.value.problems]  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [True, 1.5, "1M", 0, -1, 4095, 5000, 1 << 32, [1]], ids=repr)
def test_what_is_no_size_is_told_with_who_gave_it(value: Any) -> None:
    ((kind, name, text),) = told(routed(declared(), one=value))
    assert (kind, name) == ("bad-ring", "one")
    assert f"ring_bytes={value!r}: " in text
    ((kind, name, text),) = told(routed(declared(), external=value))
    assert (kind, name) == ("bad-ring", "one")
    assert f"external('one'): ring_bytes={value!r}: " in text
    topology = routed(declared())
    topology.process("end", ring_bytes=value)
    ((kind, name, text),) = told(topology)
    assert (kind, name) == ("bad-process-option", "end")
    assert f"ring_bytes={value!r}: " in text


def test_a_route_without_a_ring_has_no_size() -> None:
    topology = declared()
    topology.route("one", Order, to="two", ring_bytes=1 << 16)
    topology.route("two", Order, to=[], ring_bytes=1 << 16)
    for name in ("one", "two"):
        topology.route(name, (Block, Row), to=["receiver", "another"])
        topology.external(name, Order)
    topology.external("receiver", Question)
    topology.external("another", Question)
    found = told(topology)
    assert [(kind, name) for kind, name, _ in found] == [("bad-ring", "one"), ("bad-ring", "two")]
    assert all("takes no ring" in text for _, _, text in found)


def test_a_ring_that_does_not_hold_the_message_it_has_to_is_told_with_its_edge() -> None:
    ((kind, name, text),) = told(routed(declared(max_message_bytes=1 << 15), one=1 << 15, two=1 << 14))
    assert (kind, name) == ("bad-ring", "begin -> end")
    assert "ring_bytes=32768 of begin -> end does not hold a message of max_message_bytes=32768" in text
    assert "take 131072 or more" in text
    assert f"max_message_bytes={largest_message(1 << 15)} or less" in text


def test_a_worker_whose_rings_do_not_hold_it_is_told_once() -> None:
    topology = routed(declared(max_message_bytes=1 << 15))
    topology.process("end", ring_bytes=1 << 14)
    ((kind, name, text),) = told(topology)
    assert (kind, name) == ("bad-ring", "begin -> end")
    assert "ring_bytes=16384 of begin -> end" in text


class Wide(FixedMessage):
    number: u8
    data: Annotated[bytes, Size(40_000)]


class Taker(Handler):
    @handle
    def on_wide(self, wide: Wide) -> None: ...


class Giver(Handler):
    @handle
    def on_order(self, order: Order) -> None:
        self.send(Wide(1, bytes(10)))


def wide(ring: int | None) -> Topology:
    topology = Topology("wide")
    topology.worker("begin", giver=Giver)
    topology.worker("end", taker=Taker)
    topology.route("giver", Wide, to="taker", ring_bytes=ring)
    topology.external("giver", Order)
    return topology


def test_every_ring_holds_the_rows_that_it_carries() -> None:
    least = {edge.name: edge.least_ring for edge in wide(None).compile().edges}
    assert (least["begin>end"], least["gateway>end"], least["gateway>begin"]) == (1 << 17, 1 << 17, 1 << 14)
    ((kind, name, text),) = told(wide(1 << 16))
    assert (kind, name) == ("bad-ring", "begin -> end")
    assert "does not hold the fixed messages that it carries, of 40072 bytes; take 131072 or more" in text
    assert sizes(wide(1 << 17).compile())["begin>end"] == 1 << 17


def test_without_claims_every_ring_holds_the_largest_message() -> None:
    ((_, _, text),) = told(routed(declared(max_claim_bytes=1000), one=1 << 16))
    assert "max_message_bytes=262144 (max_claim_bytes=1000 is less)" in text


# ------------------------------------------------------------------------------------------------ at work
def consumed(system: System, blocks: int, rows: int = 0) -> Answer:
    answers: list[Answer] = []

    def is_done() -> bool:
        answers[:] = [system.ask("receiver", Question(), timeout=60, reply=Answer)]
        return answers[0].blocks >= blocks and answers[0].rows >= rows

    until(is_done, f"{blocks} blocks and {rows} rows", 60)
    return answers[0]


@pytest.mark.parametrize("level", ["memory", "process"])
def test_messages_of_every_size_go_through_rings_of_any_size(tmp_path: Path, level: str) -> None:
    """Also those that their own ring does not hold, but another one of the sender's would."""
    topology = app(tmp_path / "run", 4096, durability=level)
    topology.process("end", ring_bytes=4096)
    with topology.start() as system:
        total = 0
        for count, size in ((300, 100), (5, 2100), (3, 200_000), (200, 10), (1, 300_000)):
            system.send("sender", Order(count, size, rows=1000))
            total += count
        assert consumed(system, total, 5000) == Answer(total, 5000, True)
        status = system.status()
        rings = {f"{edge.source}>{edge.target}": edge.ring_capacity_bytes for edge in status.edges}
        assert (rings["begin>end"], rings["gateway>end"], rings["end>gateway"]) == (4096, 4096, MIB)
        for size in (3000, 100_000):  # from outside, too
            total += 1
            system.send("receiver", Block(total, bytes(size)))
            assert consumed(system, total).in_order
        assert (status.dead_letters, sum(worker.deaths for worker in status.workers)) == (0, 0)
    assert system.join() is ExitStatus.OK


def test_a_huge_backlog_goes_to_the_journal_and_not_to_memory(tmp_path: Path) -> None:
    """200 MB for a worker that takes nothing, by a sender that nothing pauses, as it is driven by a cycle."""
    limit, count, size = MIB, 20_000, 10_000
    with app(tmp_path / "run", 64 << 10, outbox_limit_bytes=limit).start() as system:
        sender = system.block("begin")
        process = psutil.Process(sender.get(Field.PID))
        system.send("sender", Order(10, size))
        consumed(system, 10)
        before = process.memory_info().rss
        system.pause("end")
        system.send("sender", Order(count, size))
        until(lambda: sender.get(Field.OUTBOX_BYTES) > count * size - limit, "the backlog", 60)
        assert process.memory_info().rss - before < limit + 24 * MIB
        until(lambda: sender.get(Field.JOURNAL_BYTES) > count * size - limit, "the journal to be said to have it")
        system.resume("end")
        assert consumed(system, count + 10).in_order
        assert process.memory_info().rss - before < limit + 24 * MIB


# ------------------------------------------------------------------------------------------------ from start to start
def ring_of(system: System) -> int:
    return edge_of(system).ring_capacity_bytes


def test_sizes_may_change_between_two_starts_and_what_is_pending_still_finds_room(tmp_path: Path) -> None:
    """Everything is killed while messages are pending that the rings of the next start would not hold."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tests.actors.ringed", str(run), str(2 * MIB), "30", "200000", "20000"]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"sent\n"
        workers = [one.pid for one in psutil.Process(child.pid).children(recursive=True)]
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        assert child.stdin is not None
        child.stdin.close()
    dead_within(workers, 10)
    with app(run, 4096).start() as system:
        assert ring_of(system) == 2 * MIB, "what was committed for this ring has to find room in it"
        assert consumed(system, 30, 20000) == Answer(30, 20000, True)
    for total, (edge, found) in enumerate([(4096, 4096), (None, 4 * MIB)], 31):
        with app(run, edge).start() as system:
            assert ring_of(system) == found, "nothing is pending, so it has the size that it was given"
            system.send("sender", Order(1, 3000))
            assert consumed(system, total).in_order


def test_sizes_that_do_not_fit_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors import predecessor
    from actors.ring_sizes import Room

    monkeypatch.setattr(predecessor, "room", lambda: Room(32 * MIB, None))
    with pytest.raises(StartFailed) as failed:
        app(tmp_path / "run", 64 * MIB).start()
    assert failed.value.status == ExitStatus.NO_SPACE
    cause = failed.value.__cause__
    assert isinstance(cause, RingsDoNotFit)
    assert (cause.limit, cause.kind, cause.largest, cause.largest_bytes) == (32 * MIB, "shared", "begin>end", 64 * MIB)
    assert "9 rings need" in str(failed.value)
    with app(tmp_path / "run").start() as system:
        assert ring_of(system) == 4 * MIB
    monkeypatch.setattr(predecessor, "room", lambda: Room(8 * MIB, None))
    with app(tmp_path / "run").start() as system:
        assert ring_of(system) < 256 << 10, "so that half of what is free stays free"
        system.send("sender", Order(3, 100_000, rows=3000))
        assert consumed(system, 3, 3000) == Answer(3, 3000, True)
