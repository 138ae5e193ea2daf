"""Scripts and signals: how a system that runs as a program ends, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from actors import ExitStatus, State, Topology, handle
from actors.handler import Handler
from actors.identity import stale_prefix
from actors.message import Message
from actors.rundir import RunDirectory
from persist import read
from tests.actors.waiting import dead_within

SCRIPT = """
    import math, sys, time
    from actors import Handler, Message, State, Topology, handle

    class Tick(Message):
        n: int

    class Count(State):
        n: int = 0

    class Source(Handler):
        state: Count
        def on_loop(self) -> float | None:
            if self.state.n >= LIMIT:
                self.stop_system()
                return math.inf
            self.state.n += 1
            self.send(Tick(self.state.n))
            return PAUSE

    class Sink(Handler):
        state: Count
        def __init__(self) -> None:
            print("sink up", flush=True)
        @handle
        def on_tick(self, tick: Tick) -> None:
            assert tick.n == self.state.n + 1, (tick.n, self.state.n)
            self.state.n += 1
            time.sleep(DELAY)
        def on_stop(self) -> None:
            print("handled", self.state.n, flush=True)

    app = Topology("script", directory=sys.argv[1], drain_timeout=30.0, max_restarts=1000)
    app.worker("a", source=Source)
    app.worker("b", sink=Sink)
    app.route("source", Tick, to="sink")
    if __name__ == "__main__":
        app.run()
        print("clean end", flush=True)
"""


class Script:
    """The program above as a process of its own.

    Without a `pause` more waits for the sink than a slow machine drains in time as soon as the sink stands still for
    seconds: who expects a drain to come to its end gives one.
    """

    def __init__(self, folder: Path, limit: int = 10**9, pause: str = "None", delay: float = 0.0) -> None:
        self.directory = folder / "run"
        path = folder / "script.py"
        text = textwrap.dedent(SCRIPT).replace("LIMIT", str(limit)).replace("PAUSE", pause).replace("DELAY", str(delay))
        path.write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, str(path), str(self.directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def up(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "sink up\n"

    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if "ringleader: script/" in " ".join(child.cmdline())]

    def end(self, timeout: float = 60.0) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[list[Script]]:
    started: list[Script] = []
    yield started
    for script in started:
        script.process.kill()
        script.process.communicate()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        threading.Event().wait(0.005)


def handled(directory: Path) -> int:
    """The sink's count as its journal has it."""
    import msgspec

    state = read(directory / "journals" / "b").states.get("sink")
    return msgspec.msgpack.decode(state)["n"] if state else 0


def reached(directory: Path, count: int) -> bool:
    return handled(directory) > count


def test_a_script_that_ends_cleanly_exits_0(tmp_path: Path, scripts: list[Script]) -> None:
    scripts.append(Script(tmp_path, limit=2000))
    status, out, err = scripts[0].end()
    assert (status, out, err) == (0, "sink up\nhandled 2000\nclean end\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_drains(tmp_path: Path, scripts: list[Script], number: signal.Signals) -> None:
    scripts.append(script := Script(tmp_path, pause="0.001"))
    script.up()
    until(lambda: handled(script.directory) > 0)
    script.process.send_signal(number)
    status, out, err = script.end()
    assert (status, err) == (0, "")
    # The sink's own assertion has seen that nothing is missing; nothing of what was sent is left.
    assert read(script.directory / "journals" / "a").assigned["b"] == int(out.splitlines()[0].split()[1])


def test_first_signal_drains_second_stops(tmp_path: Path, scripts: list[Script]) -> None:
    scripts.append(script := Script(tmp_path, delay=0.05))
    script.up()
    until(lambda: read(script.directory / "journals" / "a").assigned.get("b", 0) > 1000)
    script.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    script.process.send_signal(signal.SIGINT)  # two of the same kind sent at once may arrive as one
    status, _, err = script.end()
    assert status == ExitStatus.NOT_DRAINED
    assert "before everything was handled" in err
    assert time.monotonic() - started < 20
    sent = read(script.directory / "journals" / "a").assigned["b"]
    assert read(script.directory / "journals" / "b").watermarks.get("a", 0) < sent


def test_ctrl_c_reaches_the_supervisor_only(tmp_path: Path, scripts: list[Script]) -> None:
    """Workers have sessions of their own: the terminal's signal to the foreground group does not touch them."""
    scripts.append(script := Script(tmp_path, pause="0.001"))
    script.up()
    groups = {os.getpgid(worker.pid) for worker in script.workers()}
    assert os.getpgid(script.process.pid) not in groups
    script.process.send_signal(signal.SIGTERM)
    assert script.end()[0] == 0


def test_no_orphan_after_the_supervisor_is_killed(tmp_path: Path, scripts: list[Script]) -> None:
    scripts.append(script := Script(tmp_path))
    script.up()
    until(lambda: handled(script.directory) > 0)
    family = [child.pid for child in psutil.Process(script.process.pid).children(recursive=True)]
    workers = script.workers()
    assert len(workers) == 2
    workers[0].suspend()
    script.process.kill()
    dead_within(family, 2.0)
    script.end()
    remove_segments(script.directory)


def remove_segments(directory: Path) -> None:
    from bus import remove_stale

    with RunDirectory.open(directory) as opened:
        identity = opened.read_identity()
        assert identity is not None
        remove_stale(stale_prefix(identity))


def test_a_killed_system_resumes(tmp_path: Path, scripts: list[Script]) -> None:
    """SIGKILL to the supervisor again and again; the sink sees every number once and in order."""
    limit = 20_000
    before = set(Path("/dev/shm").glob("ringleader*"))
    for round_ in range(4):
        scripts.append(script := Script(tmp_path, limit=limit))
        if round_ < 3:
            script.up()
            until(partial(reached, tmp_path / "run", (round_ + 1) * limit // 6))
            script.process.kill()
            script.end()
    status, out, err = script.end()
    assert (status, err) == (0, "")
    assert f"handled {limit}\n" in out
    assert set(Path("/dev/shm").glob("ringleader*")) <= before


def test_a_topology_with_mistakes_exits_2_and_tells_them(tmp_path: Path, scripts: list[Script]) -> None:
    scripts.append(script := Script(tmp_path))
    script.process.kill()
    script.end()
    path = tmp_path / "script.py"
    path.write_text(path.read_text().replace('to="sink"', 'to="snik"'))
    ended = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "other")], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == ExitStatus.USAGE
    assert "snik" in ended.stderr
    assert "sink" in ended.stderr
    assert "Traceback" not in ended.stderr


class Number(Message):
    n: int


class Total(State):
    n: int = 0


class Deaf(Handler):
    state: Total

    @handle
    def on_number(self, number: Number) -> None:
        self.state.n += 1


def test_running_in_a_thread_is_refused_with_what_to_do(tmp_path: Path) -> None:
    app = Topology("threaded", directory=tmp_path / "run")
    app.worker("w", deaf=Deaf)
    app.external("deaf", Number)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            app.run()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert "start()" in str(caught[0])
