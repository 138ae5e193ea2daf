"""Messages between handlers of one worker: what becomes of those that fail, or kill; and of a killer of supervisors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors import ExitStatus, Handler, Message, NothingToReply, State, System, Topology, handle
from actors.local_messages import INLINE_BYTES
from actors.outgoing import HEAVY_BYTES
from actors.predecessor import take_over
from actors.rundir import RunDirectory
from bus import Field
from persist import replay
from tests.actors.waiting import until

ROOT = Path(__file__).parents[2]


class Number(Message):
    n: int
    what: str = ""


class Part(Message):
    n: int
    part: int
    what: str = ""


class Look(Message):
    pass


class Seen(Message):
    parts: tuple[str, ...]
    ids: tuple[str, ...]


class Kept(State):
    parts: list[str] = []
    ids: list[str] = []


def suffer(what: str) -> None:
    if what == "raise":
        raise ValueError("bad part")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


class Fan(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        for part in range(4):
            self.send(Part(number.n, part, number.what if part == 1 else ""))


class Sink(Handler):
    """Appends to a file as well, since at level memory the state goes with the worker."""

    state: Kept

    def __init__(self, log: str) -> None:
        self.log = Path(log)

    @handle
    def on_part(self, part: Part) -> None:
        suffer(part.what)
        self.state.parts.append(f"{part.n}.{part.part}")
        self.state.ids.append(self.message_id)
        with self.log.open("a") as file:
            file.write(f"{part.n}.{part.part}\n")

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Seen(tuple(self.state.parts), tuple(self.state.ids)))


class Row(State):
    row: int = 0


class Feed(Handler):
    state: Row

    def __init__(self, what: str) -> None:
        self.what = what

    def on_loop(self) -> float | None:
        if self.state.row == 10:
            return float("inf")
        self.send(Part(self.state.row, 0, self.what if self.state.row == 5 else ""))
        self.state.row += 1
        return None


def local(folder: Path, level: str) -> Topology:
    topology = Topology("local", directory=folder / "run", durability=level)
    topology.worker("w", fan=Fan, sink=Sink.spec(str(folder / "log")))
    topology.route("fan", Part, to="sink")
    topology.external("fan", Number)
    topology.external("sink", Look)
    return topology


def look(system: System) -> Seen:
    return system.ask("sink", Look(), reply=Seen)


def parts(folder: Path) -> set[str]:
    return set((folder / "log").read_text().split())


@pytest.mark.parametrize("level", ["memory", "process"])
@pytest.mark.parametrize("what", ["raise", "kill"])
def test_a_local_message_that_is_poison_is_given_up_and_nothing_else_is_lost(
    tmp_path: Path, level: str, what: str
) -> None:
    with local(tmp_path, level).start() as system:
        for n in range(4):
            system.send("fan", Number(n, what if n == 1 else ""))
        expected = {f"{n}.{part}" for n in range(4) for part in range(4)} - {"1.1"}
        until(lambda: (tmp_path / "log").exists() and parts(tmp_path) >= expected, "all the others", 30)
        until(lambda: system.status().dead_letters == 1, "the dead letter", 30)
        assert parts(tmp_path) == expected
        if level == "process":
            assert sorted(look(system).parts) == sorted(expected)
        assert system.stop() is ExitStatus.OK


@pytest.mark.parametrize("what", ["raise", "kill"])
def test_a_local_message_of_a_source_that_is_poison_is_given_up_and_the_source_goes_on(
    tmp_path: Path, what: str
) -> None:
    topology = Topology("fed", directory=tmp_path / "run")
    topology.worker("w", feed=Feed.spec(what), sink=Sink.spec(str(tmp_path / "log")))
    topology.route("feed", Part, to="sink")
    topology.external("sink", Look)
    with topology.start() as system:
        expected = tuple(f"{n}.0" for n in range(10) if n != 5)
        until(lambda: look(system).parts == expected, "all the others, in order", 30)
        assert system.status().dead_letters == 1
        assert system.stop() is ExitStatus.OK


def test_a_local_message_has_no_id_of_its_own(tmp_path: Path) -> None:
    with local(tmp_path, "process").start() as system:
        system.send("fan", Number(1))
        system.send("fan", Number(2, "raise"))
        until(lambda: len(look(system).parts) == 7, "them", 30)
        assert set(look(system).ids) == {""}, "neither in one transaction with its cause nor in one of its own"


class Shy(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        self.send(Part(number.n, 0))


class Late(Handler):
    state: Kept

    @handle
    def on_part(self, part: Part) -> None:
        try:
            self.reply(Seen((), ()))
        except NothingToReply as refused:
            self.state.parts.append(type(refused).__name__)

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Seen(tuple(self.state.parts), ()))


def test_only_the_handling_of_the_question_itself_can_answer_it(tmp_path: Path) -> None:
    topology = Topology("shy", directory=tmp_path / "run")
    topology.worker("w", shy=Shy, late=Late)
    topology.route("shy", Part, to="late")
    topology.external("shy", Number)
    topology.external("late", Look)
    with topology.start() as system:
        system.send("shy", Number(1))
        until(lambda: system.ask("late", Look(), reply=Seen).parts == ("NothingToReply",), "the refusal")


class Hop(Message):
    left: int
    data: bytes


class Hopper(Handler):
    """Sends to itself, and tells another worker, as much each time."""

    @handle
    def on_number(self, number: Number) -> None:
        self.send(Hop(number.n, bytes(int(number.what))))

    @handle
    def on_hop(self, hop: Hop) -> None:
        self.send(Part(hop.left, 0, "x" * len(hop.data)))
        if hop.left:
            self.send(Hop(hop.left - 1, hop.data))


class Far(Handler):
    state: Kept

    @handle
    def on_part(self, part: Part) -> None:
        self.state.parts.append(str(part.n))

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Seen(tuple(self.state.parts), ()))


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_transaction_ends_when_much_was_sent_within_the_worker_and_the_rest_is_carried_over(
    tmp_path: Path, level: str
) -> None:
    hops, size = 300, 100_000
    topology = Topology("hops", directory=tmp_path / "run", durability=level, retain_bytes=1 << 30)
    topology.worker("w", hopper=Hopper)
    topology.worker("end", far=Far)
    topology.route("hopper", Hop, to="hopper")
    topology.route("hopper", Part, to="far")
    topology.external("hopper", Number)
    topology.external("far", Look)
    with topology.start() as system:
        for _ in range(2):
            system.send("hopper", Number(hops - 1, str(size)))
        expected = tuple(str(left) for left in reversed(range(hops)))

        def all_told() -> bool:
            return len(system.ask("far", Look(), reply=Seen).parts) == 2 * hops

        until(all_told, "all hops to be told")
        told = system.ask("far", Look(), reply=Seen).parts
        assert sorted(told) == sorted(2 * expected)
        if level == "process":
            records = [
                sum(len(run.body) for run in record.sends) for record in replay(tmp_path / "run" / "journals" / "w")
            ]
            most = 2 * INLINE_BYTES + 4 * size  # what was told elsewhere is as much as what went round
            assert max(records) < most, "no record of the journal is longer"
        assert system.block("w").get(Field.COMMITS) > 2 * hops * size / (INLINE_BYTES + size)
        assert system.stop() is ExitStatus.OK


class Giver(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        for n in range(number.n):
            self.send(Number(n))


class Wide(Handler):
    @handle
    def on_number(self, number: Number) -> None:
        for _ in range(10):
            self.send(Hop(number.n, bytes(100_000)))


class Taker(Handler):
    state: Row

    @handle
    def on_hop(self, hop: Hop) -> None:
        self.state.row += 1

    @handle
    def on_look(self, look: Look) -> None:
        self.reply(Seen((str(self.state.row),), ()))


def test_a_run_is_cut_when_much_was_sent_within_the_worker(tmp_path: Path) -> None:
    """Its messages came together, and each of them has others sent."""
    count = 100
    topology = Topology("wide", directory=tmp_path / "run")
    topology.worker("from", giver=Giver)
    topology.worker("w", wide=Wide, taker=Taker)
    topology.route("giver", Number, to="wide")
    topology.route("wide", Hop, to="taker")
    topology.external("giver", Number)
    topology.external("taker", Look)
    with topology.start() as system:
        system.send("giver", Number(count))
        block = system.block("w")
        until(lambda: block.get(Field.HANDLED) == 11 * count, "all of them")
        assert block.get(Field.COMMITS) > count * 10 * 100_000 / (HEAVY_BYTES + 1_000_000)
        assert block.get(Field.CARRIED) == 0, "what was sent is handled all the same"
        assert system.ask("taker", Look(), reply=Seen).parts == (str(10 * count),)


KILLER = """
import os, signal, sys
from pathlib import Path
from actors import Handler, Message, State, Topology, handle

class Job(Message):
    n: int

class Work(Handler):
    @handle
    def on_job(self, job: Job) -> None:
        if job.n == 2:
            os.kill(int(Path({pid!r}).read_text()), signal.SIGKILL)
            signal.pause()
        with open({log!r}, "a") as file:
            file.write(f"{{job.n}}\\n")

app = Topology("killer", directory={run!r})
app.worker("w", work=Work)
app.external("work")

if __name__ == "__main__":
    Path({pid!r}).write_text(str(os.getpid()))
    with app.start() as system:
        if len(sys.argv) > 1:
            system.pause("w")  # the second one kills whoever has still to send the third
            for n in (1, 2, 3):
                system.send("work", Job(n))
            system.resume("w")
        while len(Path({log!r}).read_text().split() if Path({log!r}).exists() else ()) < 2:
            signal.sigtimedwait((), 0.02)
"""


@pytest.mark.timeout(180)
def test_a_message_that_takes_the_supervisor_down_is_counted_at_the_next_start(tmp_path: Path) -> None:
    names = {"pid": str(tmp_path / "pid"), "log": str(tmp_path / "log"), "run": str(tmp_path / "run")}
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(**names))
    codes = []
    for attempt in range(4):
        command = [sys.executable, str(script), *(["first"] if attempt == 0 else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False)
        codes.append(ran.returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    written = (tmp_path / "log").read_text().split()  # outside of the system, so at least once
    assert set(written) == {"1", "3"}
    assert written[-1] == "3"


def test_what_a_clean_run_leaves_makes_nobody_a_suspect(tmp_path: Path) -> None:
    topology = local(tmp_path, "process")
    with topology.start() as system:
        system.send("fan", Number(1))
        until(lambda: look(system).parts != (), "it to be handled")
        system.block("w").set(Field.BUSY_PEER, 1)
        system.block("w").set(Field.BUSY_SEQ, 1)
    with RunDirectory.open(tmp_path / "run") as directory:
        directory.lock()
        assert take_over(directory, topology.compile())[2] == {}
