"""A system that is tortured at its failpoints, and those who watch it: arm, provoke, wait until it gets on again."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from actors.claims_on_disk import beginning
from actors.identity import stale_prefix
from actors.rundir import IDENTITY
from actors.tickets import ticket_in
from bus import Board, Field, Segment, Text, remove_stale
from persist import read
from tests.actors.waiting import dead_within
from tests.torture.breeder import ORPHANS, Bred, Breeder
from tests.torture.combinations import Combination, Verdict, Way
from tests.torture.failpoint_system import WHOLE
from tests.torture.hook import ROOT, VARIABLE, WORKER, Switchboard
from tests.torture.outside import remembered
from tests.torture.rows_system import tortured as rows
from tests.torture.run import identity_of, left_over

PATIENCE = 60.0  # seconds, until the next one of a group acts, and for everyone to get on
FIRST_START = 90.0
AGAIN = 0.12  # seconds between two provocations
HUNG = 0.05  # of the stopped workers are left to the supervisor
CLAIM = 0.3  # seconds from being about to act until it has
LOOK = 0.002
# Every death was asked for (a SIGKILL is put down to memory if the kernel kills somebody for that just then), or is one
# of a machine with too much to do (hung, could not be launched); nobody ends because of what he finds in a ring, a
# journal, or a message.
EXPECTED = re.compile(
    r"killed by SIG(KILL|SEGV)|exit code 1 \(CRASHED\): an exception that nobody handled$|.*\bFailpointError: "
    r"|.*\bViewEscaped: |hung: |could not be launched: |killed for memory: .*; killed by SIGKILL$"
)
LATE = "it did not end within 5 s; killed by SIGKILL"  # who was stopped by SIGSTOP while the system ended


SYSTEMS = {"whole": WHOLE, "memory": rows("memory"), "power": rows("power")}


class Trouble(Exception):
    """The run cannot go on."""


class Run:
    """The system under torture, in a process of its own, and those who watch it."""

    def __init__(
        self, folder: Path, chance: random.Random, verdict: Verdict, ring: Path | None, system: str = "whole"
    ) -> None:
        """`ring`: a build of the C ring with failpoints; None for the ring in Python."""
        self.tortured = SYSTEMS[system]
        self.folder = folder
        self.chance = chance
        self.verdict = verdict
        (folder / "hook").mkdir(parents=True)
        self.board = Switchboard(folder / "hook", create=True, ring=ring)
        self.ring = "c" if ring else "python"
        environment = os.environ | {
            VARIABLE: str(self.board.folder),
            "PYTHONPATH": f"{ROOT / 'tests/torture/hooked'}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RINGLEADER_RING": self.ring,
        }
        self._breeder = Breeder(
            ["-m", "tests.torture.failpoints", "--breed", str(folder), "--system", system], environment
        )
        self.up = False
        self._system: Bred | None = None  # the process with the supervisor
        self._blocks: Board | None = None
        self._segment: Segment | None = None
        self._prefix = ""
        self._serial = 0
        self._sessions: set[str] = set()
        self._stopped: set[int] = set()  # processes, by SIGSTOP

    # ------------------------------------------------------------------------------------------------ the system
    def start(self) -> None:
        """Starts it where it was; it is `up` later."""
        for flag in ("up", "rest"):
            self.board.set(flag, 0)
        self._system = self._breeder.another()
        self.verdict.systems += 1

    def look(self) -> None:
        """Notices that it is up, or gone; then it is started again."""
        if self._system is None:
            self.start()
        elif self._system.dead():
            self.gone()
            self.start()
        elif not self.up and self.board.flag("up"):
            self._attach()

    def _attach(self) -> None:
        identity = identity_of(self.folder)
        prefix = stale_prefix(identity)
        self.verdict.wrong += left_over([self._prefix] if self._prefix not in {"", prefix} else [])
        self._prefix = prefix
        self._sessions.add(identity.session)
        self._segment = Segment.attach(identity.board)
        self._blocks = Board(self._segment.buf)
        self.up = True

    def gone(self) -> None:
        """It is dead, or about to be: nobody of it may be left soon."""
        children = list(self._pids().values())
        if self._system is not None:
            self._system.kill()
        dead_within(children, ORPHANS)
        self._detach()

    def _detach(self) -> None:
        if self._blocks is not None and self._segment is not None:
            gaps = {name: self._blocks.block(f"w-{name}").get(Field.GAPS) for name in self.tortured.names}
            self.verdict.wrong += [f"{count} gaps in what w-{name} got" for name, count in gaps.items() if count]
            self._blocks.close()
            self._segment.close()
        self._blocks = self._segment = self._system = None
        self.up = False

    def _pids(self) -> dict[str, int]:
        if self._blocks is None:
            return {}
        pids = {name: self._blocks.block(f"w-{name}").get(Field.PID) for name in self.tortured.names}
        return {name: pid for name, pid in pids.items() if pid}

    def _counts(self) -> dict[str, int]:
        if self._blocks is None:
            return {}
        counts = {
            name: self._blocks.block(f"w-{name}").get(Field.HANDLED) for name in self.tortured.names if name != "source"
        }
        if "source" in self.tortured.names:
            counts["source"] = self._blocks.block("w-source").get(Field.SENT)
        return counts | {"gateway": self._blocks.block("gateway").get(Field.COMMITS)}

    # ------------------------------------------------------------------------------------------------ one group
    def take(self, group: Sequence[Combination]) -> None:
        self._come_up()
        waiting = list(group)
        for one in waiting:
            self._arm(one)
        self.verdict.sequence.append(" ".join(map(str, group)))
        deadline, due = time.monotonic() + PATIENCE, 0.0
        while waiting:
            self.look()
            for one in list(waiting):
                pid = self.board.acted_in(one.point)
                since = self.board.claimed(one.point) if not pid else 0
                if since and time.time() > since + CLAIM:
                    self._arm(one)  # whoever was about to act died of something else at that very moment
                if pid:
                    if one.action == "SIGSTOP":
                        self._end_stopped(pid, one.way)
                    waiting.remove(one)
                    deadline = time.monotonic() + PATIENCE
                    self.verdict.count += 1
                    self.verdict.acted.add((self.ring, one.point))
            now = time.monotonic()
            if self.up and now > due:
                due = now + AGAIN
                self._provoke({one.way.provoke for one in waiting})
            if now > deadline:
                states = {str(one): self.board.state(one.point) for one in waiting}
                raise Trouble(f"not reached within {PATIENCE:g} s: {states}")
            self._check()
            pause(LOOK)
        for flag in ("pile", "raise", "carry", "poison", "keep", "hold"):
            self.board.set(flag, 0)
        self.board.disarm("append-before-write")
        self._get_on()

    def _come_up(self) -> None:
        """The first start takes long: its processes compile what they import, with the calls."""
        deadline = time.monotonic() + FIRST_START
        while not self.up:
            if time.monotonic() > deadline:
                raise Trouble(f"the system did not come up within {FIRST_START:g} s")
            self.look()
            pause(LOOK)

    def _arm(self, one: Combination) -> None:
        self._serial += 1
        self.board.arm(one.point, one.action, one.nth, one.way.role, self._serial)

    def _provoke(self, kinds: set[str]) -> None:
        for kind in sorted(kinds):
            match kind:
                case "":
                    pass
                case "worker":
                    pids = self._pids()
                    if pids:
                        kill(self.chance.choice(sorted(pids.values())))
                case "system":
                    self.gone()
                case "session":
                    self.board.set("rest")
                case "tear":
                    self._serial += 1
                    self.board.arm("append-before-write", "tear", self.chance.randint(1, 9), WORKER, self._serial)
                case flag:
                    self.board.set(flag)

    def _end_stopped(self, pid: int, way: Way) -> None:
        """A process that stopped itself is killed: a worker now and then by its supervisor, which finds that it hangs;
        mostly from here, as soon as it was seen to be stopped, since that takes no second."""
        by_supervisor = way.role == WORKER and way.watched and self.chance.random() < HUNG
        deadline = time.monotonic() + PATIENCE
        self._stopped.add(pid)
        try:
            process = psutil.Process(pid)
            while process.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
                assert time.monotonic() < deadline, f"{pid} does not stop"
                pause(LOOK)
            while by_supervisor and process.status() == psutil.STATUS_STOPPED:
                assert time.monotonic() < deadline, f"{pid} is stopped, and its supervisor does not mind"
                pause(LOOK)
        except psutil.NoSuchProcess:
            return
        kill(pid)

    def _get_on(self) -> None:
        """Until every worker, and the program, have done something since."""
        deadline = time.monotonic() + PATIENCE
        system, before = self._system, self._counts()
        while True:
            self.look()
            if self._system is not system or not self.up:
                system, before = self._system, {}
            if self.up:
                counts = self._counts()
                if all(count > before.get(name, 0) for name, count in counts.items()):
                    return
                if time.monotonic() > deadline:
                    stuck = [name for name, count in counts.items() if count <= before.get(name, 0)]
                    raise Trouble(f"{', '.join(stuck)} did not get on within {PATIENCE:g} s")
            elif time.monotonic() > deadline:
                raise Trouble(f"the system did not come up again within {PATIENCE:g} s")
            self._check()
            pause(LOOK)

    def _check(self) -> None:
        if (self.folder / "wrong").exists():
            raise Trouble((self.folder / "wrong").read_text())

    # ------------------------------------------------------------------------------------------------ the end
    def finish(self) -> None:
        """Asks the oracle."""
        while not self.up:
            self.look()
        self.verdict.wrong += self._other_rings()
        self.board.set("finish", len(self._sessions))
        assert self._system is not None
        if not self._system.dead(2 * PATIENCE):
            raise Trouble("the system did not finish")
        self._detach()
        if not (self.folder / "verdict").exists():
            raise Trouble(f"the system ended instead of finishing: {(self.folder / 'log').read_text()[-2000:]}")
        found = json.loads((self.folder / "verdict").read_text())
        self.verdict.items += found["items"]
        self.verdict.wrong += found["wrong"] + self._strange_deaths() + left_over([self._prefix])
        if self.tortured.poisoned:
            self.verdict.wrong += self._letters()

    def _other_rings(self) -> list[str]:
        """Every worker must use the ring that this run is about."""
        assert self._blocks is not None
        cells = {name: self._blocks.block(f"w-{name}").get(Field.RING_IMPLEMENTATION) for name in self.tortured.names}
        return [
            f"w-{name} does not use the ring in {self.ring}"
            for name in self.tortured.names
            if cells[name] != (self.ring == "c")
        ]

    def _letters(self) -> list[str]:
        """The dead letters must be the poison, all of it that was accepted, once, and nothing else."""
        asked, accepted = remembered(self.folder, "poison")
        journals = self.folder / "run" / "journals"
        found = [(path, letter) for path in sorted(journals.iterdir()) for letter in read(path).dead]
        letters = [letter for _, letter in found]
        wrong = [f"dead letter: {one.type} {one.reason}" for one in letters if not one.type.endswith("Poison")]
        numbers = [
            msgspec.msgpack.decode(_of_claim(path, one.body), type=tuple[int, bytes])[0]
            for path, one in found
            if one.type.endswith("Poison")
        ]
        if len(set(numbers)) != len(numbers) or not accepted <= set(numbers) <= set(range(1, asked + 1)):
            wrong.append(f"of {asked} poisonous messages, {len(accepted)} accepted, {numbers} are dead letters")
        return wrong

    def _strange_deaths(self) -> list[str]:
        log = (self.folder / "log").read_text()
        deaths = re.findall(r"^worker '[\w-]+' died.*?\(process (\d+).*?\): (.*)$", log, re.MULTILINE)
        strange = [
            reason
            for pid, reason in deaths
            if not EXPECTED.match(reason) and not (reason == LATE and int(pid) in self._stopped)
        ]
        return [f"a worker died: {reason}" for reason in dict.fromkeys(strange)]

    def describe(self) -> list[str]:
        """What it looks like when the run cannot go on."""
        lines = [f"up: {self.up}"]
        if self._blocks is not None:
            for name in (*(f"w-{name}" for name in self.tortured.names), "gateway"):
                block = self._blocks.block(name)
                cells = (Field.PID, Field.STATE, Field.SUPERVISED_STATE, Field.RESTARTS, Field.HANDLED)
                lines.append(f"{name}: {[block.get(cell) for cell in cells]} {block.text(Text.LAST_DEATH)[-300:]!r}")
        log = self.folder / "log"
        return [*lines, log.read_text()[-1500:] if log.exists() else "no system was started"]

    def close(self) -> None:
        """Nobody and nothing of it is left, also when it has ended in the middle."""
        self.gone()
        self._breeder.close()
        if (self.folder / "run" / IDENTITY).exists():
            remove_stale(stale_prefix(identity_of(self.folder)))


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _of_claim(journal: Path, body: bytes) -> bytes:
    """What a dead letter keeps; all of those here are too large to be in the letter itself."""
    ticket = ticket_in(body)
    assert ticket is not None
    return beginning(ticket, journal, ticket.size)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)
