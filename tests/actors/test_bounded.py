"""What may be of any size or take any time must not hold up, or end, anything else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from actors import Handler, Message, Topology, handle
from actors.careful import REASON_LIMIT
from actors.dispatch import BATCH_NS
from actors.system_errors import AskFailed

from .waiting import until


class Shout(Message):
    letters: int


class Step(Message):
    n: int


class Loud(Handler):
    @handle
    def on_shout(self, shout: Shout) -> None:
        if shout.letters:
            raise ValueError("\u00e4" * shout.letters)
        self.reply(Shout(0))


class Slow(Handler):
    """Each step takes longer than a batch may, and ends once its file is there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @handle
    def on_step(self, step: Step) -> None:
        until_ns = time.monotonic_ns() + 2 * BATCH_NS
        (self.place / f"begun-{step.n}").touch()
        until(lambda: time.monotonic_ns() > until_ns, "the end of its time", 60)
        until((self.place / f"end-{step.n}").exists, "the end of the step", 60)


@pytest.mark.parametrize("ring_bytes", [4096, None])
def test_what_an_exception_says_may_be_longer_than_a_ring(tmp_path: Path, ring_bytes: int | None) -> None:
    """The answer was in the journal, and in no ring that there is: nothing started ever again."""
    app = Topology("loud", directory=tmp_path / "run", max_attempts=1, ring_bytes=ring_bytes)
    app.worker("w", loud=Loud)
    app.external("loud", Shout)
    for _ in range(2):
        with app.start() as system:
            with pytest.raises(AskFailed) as failed:
                system.ask("loud", Shout(600_000), timeout=30)
            assert "ValueError: \u00e4\u00e4" in str(failed.value)
            assert len(str(failed.value)) < 2 * REASON_LIMIT
            assert system.ask("loud", Shout(0), timeout=30) == Shout(0)
            assert system.status().workers[0].restarts == 0


def test_a_command_longer_than_its_ring_is_cut_or_refused(tmp_path: Path) -> None:
    app = Topology("commanded", directory=tmp_path / "run", ring_bytes=4096)
    app.worker("w", loud=Loud)
    app.external("loud", Shout)
    for _ in range(2):
        with app.start() as system:
            letters = [("w", "p" * 60, n) for n in range(64)] + [("w", "p" * 600_000, 1)]
            changes = system.drop_dead_letters(letters)
            assert {change.problem for change in changes} == {"no such dead letter"}
            assert len(changes) == 65
            assert system.ask("loud", Shout(0), timeout=30) == Shout(0)


def test_messages_that_were_sent_one_by_one_are_committed_when_time_is_up(tmp_path: Path) -> None:
    app = Topology("slow", directory=tmp_path / "run")
    app.worker("w", slow=Slow.spec(tmp_path))
    app.external("slow", Step)
    with app.start() as system:
        system.pause("w")
        for n in (1, 2):
            system.send("slow", Step(n))
        system.resume("w")
        until((tmp_path / "begun-1").exists, "the first step")
        (tmp_path / "end-1").touch()
        until((tmp_path / "begun-2").exists, "the second step")
        assert system.status().workers[0].handled_messages == 1
        (tmp_path / "end-2").touch()
        until(lambda: system.status().workers[0].handled_messages == 2, "the end")
