"""What a handler keeps of a transaction that was never committed: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors import ExitStatus, Handler, Message, State, System, Topology, handle
from actors.codec import StateCodec
from actors.hosted import Context, Hosted
from bus import Progress
from tests.actors.waiting import until

COUNTERS = 8


class Bad(Message):
    n: int


class Step(Message):
    n: int


class Look(Message):
    pass


class Seen(Message):
    steps: int


class Steps(State):
    steps: int = 0


class Counter(Handler):
    state: Steps

    @handle
    def on_step(self, step: Step) -> None:
        self.state.steps += 1

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Seen(self.state.steps))


class Relay(Handler):
    """What it leaves in its state can be written and not read, so that the transaction fails when it is encoded."""

    state: Steps

    @handle
    def on_bad(self, bad: Bad) -> None:
        self.send(Step(bad.n))
        wrong: Any = "not a number"
        self.state.steps = wrong


def test_what_was_encoded_and_not_committed_is_not_committed_by_who_changes_nothing() -> None:
    topology = Topology("hosted")
    topology.worker("w", counter=Counter)
    topology.external("counter")
    plan = topology.compile().worker("w").handlers[0]
    context = Context(Progress(memoryview(bytearray(16)).cast("Q"), 0, 1))
    hosted = Hosted(0, plan, lambda message: None, lambda *_: None, context)
    hosted.restore(none := StateCodec(Steps).encode(Steps()), None)
    first: Any = hosted.make()
    first.state.steps += 1
    assert hosted.changes()[0] is not None
    second: Any = hosted.make()  # the transaction was rolled back
    assert second.state.steps == 0
    assert hosted.changes() == (None, [])
    hosted.committed()
    assert hosted.whole() == (none, {})


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_transaction_that_failed_has_no_effect_on_the_handlers_beside_the_one_at_fault(
    tmp_path: Path, level: str
) -> None:
    """Which of them are encoded before the one that fails is anybody's guess: so there are many."""
    names = [f"c{n}" for n in range(COUNTERS)]
    topology = Topology("beside", directory=tmp_path / "run", durability=level, max_attempts=1)
    topology.worker("w", relay=Relay, **dict.fromkeys(names, Counter))
    topology.route("relay", Step, to=names)
    topology.external("relay", Bad)
    for name in names:
        topology.external(name, Look)
    with System(topology.compile(), tmp_path / "run").start() as system:

        def fail(n: int) -> None:
            system.send("relay", Bad(n))
            until(lambda: system.status().workers[0].dead_letters == n, "a dead letter")

        def looks() -> list[int]:
            return [system.ask(name, Look(), reply=Seen).steps for name in names]

        for n in range(1, 4):
            fail(n)
            assert looks() == [0] * COUNTERS


class Noting(Handler):
    """Fails at its first message, and so is made once more."""

    def __init__(self, notes: str) -> None:
        self._notes = Path(notes)

    def note(self, what: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{what} {self.message_id!r}\n")

    def on_start(self) -> None:
        self.note("start")

    @handle
    def on_step(self, step: Step) -> None:
        self.note("step")
        if self._notes.read_text().count("step") == 1:
            raise ValueError("once")

    def on_stop(self) -> None:
        self.note("stop")


@pytest.mark.parametrize("level", ["memory", "process"])
def test_while_a_handler_starts_or_stops_no_message_is_in_progress(tmp_path: Path, level: str) -> None:
    notes = tmp_path / "notes"
    topology = Topology("noting", durability=level)
    topology.worker("w", noting=Noting.spec(str(notes)))
    topology.external("noting", Step)
    with System(topology.compile(), tmp_path / "run").start() as system:
        system.send("noting", Step(1))
        until(lambda: notes.read_text().count("step") == 2, "the second attempt")
        assert system.stop() is ExitStatus.OK
    assert notes.read_text().splitlines() == [
        "start ''",
        "step 'gateway/1'",
        "start ''",
        "step 'gateway/1'",
        "stop ''",
    ]
