"""What is done about workers that hang, and what is told of those that die; with real systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import Handler, Message, StartFailed, State, System, Topology, events, handle
from actors.endpoint import Endpoint
from actors.evidence import counter_file
from actors.launch import prepare
from bus import Field, Text
from persist import read
from tests.actors.waiting import dead_within, until

ROOT = Path(__file__).parents[2]


class Do(Message):
    what: str


class Ask(Message):
    pass


class Done(Message):
    items: tuple[str, ...]


class Items(State):
    items: list[str] = []


def what_is_said(what: str) -> None:
    if what == "spin":
        while True:
            pass
    if what == "spin in C":
        sum(range(10**12))
    if what == "crash":
        innermost()
    if what.startswith("sleep"):
        time.sleep(float(what.split()[1]))
    if what.startswith("until"):
        until(Path(what.split()[1]).exists, "the word to go on")


def innermost() -> None:
    import faulthandler

    faulthandler._sigsegv()  # type: ignore[attr-defined]


LIMIT = 1.0  # seconds: who is well has nearly all of it to be late, and a verdict takes two looks


class Limited(Handler, busy_limit=LIMIT):
    state: Items

    @handle
    def on_do(self, do: Do) -> None:
        what_is_said(do.what)
        self.state.items.append(do.what)

    @handle
    def on_ask(self, ask: Ask) -> None:
        self.reply(Done(tuple(self.state.items)))


class Free(Limited, busy_limit=None):
    pass


class Loops(Limited):
    def on_loop(self) -> float | None:
        if "spin in on_loop" in self.state.items:
            self.state.items.remove("spin in on_loop")
            what_is_said("spin")
        return None


class Hungry(Limited):
    def on_start(self) -> None:
        bytearray(1 << 30)


class Watched:
    """A system of one worker, `w`, and its events."""

    def __init__(self, folder: Path, handler: type[Handler] = Limited, **supervised: Any) -> None:
        self.events: list[events.Event] = []
        self.app = Topology("deaths", directory=folder / "run", max_attempts=2, backoff_first=0.01)
        self.app.worker("w", it=handler)
        self.app.external("it")
        if supervised:
            self.app.supervise("w", **supervised)

    def start(self) -> System:
        return self.app.start(observer=self.events.append)

    def deaths(self) -> list[events.WorkerDied]:
        return [event for event in self.events if isinstance(event, events.WorkerDied)]


def last_death(system: System) -> str:
    return system.block("w").text(Text.LAST_DEATH)


def pid_of(system: System) -> int:
    return system.block("w").get(Field.PID)


def test_a_stopped_worker_is_killed_and_restarted_and_its_message_not_blamed(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Free, hung_after=LIMIT)
    what = f"until {tmp_path}/go"
    with watched.start() as system:
        before = pid_of(system)
        system.send("it", Do(what))
        until(lambda: system.block("w").get(Field.BUSY_HANDLER), "it to be at work")
        os.kill(before, signal.SIGSTOP)
        dead_within([before], 20)
        (tmp_path / "go").touch()
        assert system.ask("it", Ask(), reply=Done).items == (what,)
        assert pid_of(system) != before
        assert last_death(system).startswith("hung: stopped by a signal (SIGSTOP) for ")
        (died,) = watched.deaths()
        assert died.blamed is None


@pytest.mark.parametrize("what", ["spin", "spin in C"])
def test_a_message_that_takes_too_long_is_blamed_and_given_up_and_the_others_flow(tmp_path: Path, what: str) -> None:
    watched = Watched(tmp_path)
    with watched.start() as system:
        for one in ("before", what, "after"):
            system.send("it", Do(one))
        assert system.ask("it", Ask(), timeout=30, reply=Done).items == ("before", "after")
        assert "hung: handler 'it' busy for" in last_death(system)
        assert f"more than its busy_limit of {LIMIT:g} s; killed by SIGKILL" in last_death(system)
    assert len(watched.deaths()) == 2, "one per attempt"
    assert all(death.blamed is not None for death in watched.deaths())
    (letter,) = read(tmp_path / "run" / "journals" / "w").dead
    assert letter.attempts == 2


def test_on_loop_has_the_same_limit(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Loops)
    with watched.start() as system:
        before = pid_of(system)
        system.send("it", Do("spin in on_loop"))
        dead_within([before], 20)
        until(lambda: watched.deaths(), "its death")
        assert "outside of any message" in watched.deaths()[0].reason
        assert watched.deaths()[0].blamed is None
        system.stop(drain=False)


def test_a_handler_without_limit_may_take_as_long_as_it_likes(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Free, hung_after=LIMIT)
    with watched.start() as system:
        system.send("it", Do(f"sleep {LIMIT + 1}"))
        assert system.ask("it", Ask(), reply=Done).items == (f"sleep {LIMIT + 1}",)
    assert watched.deaths() == []


def test_many_messages_within_the_limit_are_not_one_beyond_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    with watched.start() as system:
        for _ in range(12):
            system.send("it", Do(f"sleep {LIMIT / 10}"))
        assert len(system.ask("it", Ask(), reply=Done).items) == 12
    assert watched.deaths() == []


class Slow(Limited):
    """Takes its time, but never too much at once: in on_loop, and in messages to itself in one transaction."""

    def on_loop(self) -> float | None:
        if len(self.state.items) < 4:
            time.sleep(LIMIT * 0.3)
            self.state.items.append("loop")
            return 0.0
        return None

    @handle
    def on_do(self, do: Do) -> None:
        time.sleep(LIMIT * 0.2)
        self.state.items.append(do.what)
        if do.what == "first":
            for _ in range(5):
                self.send(Do("sent to itself"))


def test_on_loop_and_messages_within_the_worker_are_measured_one_by_one(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Slow)
    watched.app.route("it", Do, to="it")
    with watched.start() as system:
        until(lambda: system.ask("it", Ask(), reply=Done).items == ("loop",) * 4, "on_loop")
        system.send("it", Do("first"))
        until(lambda: len(system.ask("it", Ask(), reply=Done).items) == 10, "all messages")
    assert watched.deaths() == []


class SlowDisk(Limited):
    def on_start(self) -> None:
        commit = Endpoint.commit

        def slow(*given: Any) -> None:
            Endpoint.commit = commit  # type: ignore[method-assign]
            time.sleep(LIMIT + 1)
            commit(*given)

        Endpoint.commit = slow  # type: ignore[assignment,method-assign]


def test_a_slow_commit_is_not_the_handlers_fault(tmp_path: Path) -> None:
    watched = Watched(tmp_path, SlowDisk)
    with watched.start() as system:
        system.send("it", Do("quick"))
        assert system.ask("it", Ask(), reply=Done).items == ("quick",)
    assert watched.deaths() == []


def test_where_it_crashed_is_told_with_the_death(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    with watched.start() as system:
        system.send("it", Do("crash"))
        until(lambda: len(watched.deaths()) == 2, "two attempts")
        lines = last_death(system).splitlines()
    assert lines[0].startswith("killed by SIGSEGV in innermost (test_deaths.py:")
    assert lines[1] == "Fatal Python error: Segmentation fault"
    assert any("in what_is_said" in line for line in lines)


def test_memory_limit_is_named(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Hungry)
    watched.app.process("w", memory_bytes=600 << 20)
    with pytest.raises(StartFailed) as failed:
        watched.start()
    assert "ran out of its own memory limit of 629,145,600 bytes" in str(failed.value)
    assert "MemoryError" in str(failed.value)


def test_an_option_that_cannot_be_applied_ends_the_start_of_the_system(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    watched = Watched(tmp_path)
    watched.app.process("w", cwd=folder)
    system = prepare(watched.app)  # it is there when the topology is checked
    folder.rmdir()
    with pytest.raises(StartFailed) as failed:
        system.start()
    assert f"process option cwd='{folder}' could not be applied: No such file or directory" in str(failed.value)


def test_a_worker_has_the_descriptors_that_it_was_given_and_no_others(tmp_path: Path) -> None:
    """Each of them is explained; the supervisor has some open that nobody gave it."""
    stray = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(stray, True)
    listening, other = os.pipe()
    os.set_inheritable(other, True)
    try:
        with Watched(tmp_path).start() as system:
            assert system.ask("it", Ask(), reply=Done).items == ()
            found = {}
            for entry in Path(f"/proc/{pid_of(system)}/fd").iterdir():
                found[int(entry.name)] = os.readlink(entry)
            journal = str(tmp_path / "run" / "journals" / "w")
            explained = {
                "standard streams": [fd for fd in found if fd <= 2],
                "lifeline": [fd for fd, to in found.items() if fd > 2 and to.startswith("pipe:")],
                "last words": [fd for fd, to in found.items() if "ringleader-last-words" in to],
                "journal": [fd for fd, to in found.items() if to == journal or to.startswith(journal + "/")],
                "board and rings": [fd for fd, to in found.items() if to.startswith("/dev/shm/ringleader-")],
                "channel for log records": [fd for fd, to in found.items() if to.startswith("socket:")],
            }
            rest = set(found) - {fd for fds in explained.values() for fd in fds}
            assert not rest, {fd: found[fd] for fd in rest}
            assert len(explained["last words"]) == len(explained["channel for log records"]) == 1
            assert len(explained["board and rings"]) == 3
            assert len(explained["lifeline"]) == 1, explained
            assert "/etc/hostname" not in found.values()
    finally:
        for fd in (stray, listening, other):
            os.close(fd)


OOM = """
    import sys
    open(GROUP + "/cgroup.procs", "w").write("0")
    sys.path.insert(0, ROOT)
    from actors import Handler, Message, Topology, handle
    from bus import Text

    class Grow(Message):
        pass

    class Eater(Handler, max_attempts=1):
        @handle
        def on_grow(self, grow: Grow) -> None:
            self.kept = bytearray(2 << 30)

    app = Topology("hungry", directory=DIRECTORY, max_attempts=1)
    app.worker("w", eater=Eater)
    app.external("eater")
    if __name__ == "__main__":
        import time
        with app.start() as system:
            system.send("eater", Grow())
            while not (told := system.block("w").text(Text.LAST_DEATH)):
                time.sleep(0.01)
            print(told.splitlines()[0], flush=True)
"""


def test_a_worker_killed_for_memory_is_told_to_be_so(tmp_path: Path) -> None:
    own = counter_file()
    if own is None:
        pytest.skip("no control group counts here what the kernel kills for memory")
    group = own.parent / f"ringleader-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as refused:
        pytest.skip(f"no control group can be made here: {refused}")
    try:
        limit = group / ("memory.max" if own.name == "memory.events" else "memory.limit_in_bytes")
        try:
            limit.write_text(str(512 << 20))
        except OSError as refused:
            pytest.skip(f"memory cannot be limited here: {refused}")
        script = tmp_path / "hungry.py"
        text = textwrap.dedent(OOM).replace("GROUP", repr(str(group))).replace("ROOT", repr(str(ROOT)))
        script.write_text(text.replace("DIRECTORY", repr(str(tmp_path / "run"))))
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
        assert ran.stdout.startswith("killed for memory: the kernel"), ran.stderr
        assert ran.stdout.endswith("; killed by SIGKILL\n")
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), "the group to be empty")
        group.rmdir()


def test_grandchildren_of_every_kind_go_with_their_worker(tmp_path: Path) -> None:
    """A handler that starts `sleep`, also one that leaves the session of its worker."""
    watched = Watched(tmp_path, StartsOthers)
    with watched.start() as system:
        system.send("it", Do("go"))
        pids = [int(pid) for pid in system.ask("it", Ask(), reply=Done).items]
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(pid_of(system), signal.SIGKILL)
        dead_within(pids, 2)
        assert system.ask("it", Ask(), reply=Done).items == tuple(map(str, pids))


class StartsOthers(Limited, busy_limit=None):
    @handle
    def on_do(self, do: Do) -> None:
        for command in (["sleep", "600"], ["setsid", "-f", "sleep", "600"]):
            started = subprocess.Popen(command)
            if command[0] == "sleep":
                self.state.items.append(str(started.pid))
            else:
                started.wait()
        self.state.items += [str(pid) for pid in _sleepers(os.getpid()) if str(pid) not in self.state.items]


def _sleepers(worker: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "sleep" and int(process.environ().get("RINGLEADER_WORKER", "0")) == worker:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
