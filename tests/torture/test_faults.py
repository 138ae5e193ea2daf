"""Rows of FAULTS.md that need whole systems: clock jumps, signals, many starts at once, the smallest rings, leaks."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors import ExitStatus, Topology, supervisor
from actors.identity import stale_prefix
from actors.rundir import IDENTITY
from bus import Field, max_record
from tests.actors.test_overload import Get, Player, Seen, Token
from tests.actors.waiting import dead_within, until
from tests.torture import clock
from tests.torture.breeder import ORPHANS, Breeder
from tests.torture.run import identity_of, kill_workers, left_over, torture
from tests.torture.slopes import settled, slope
from tests.torture.topology import WORKERS, topology

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The one way in which a system that takes two signals may end with FAILED: the second one comes when all is handled and
# some worker is not let run for the second that it has then. (Told to end by the first one only, it has five.)
LATE = re.compile(r"^ringleader: torture: worker '[\w-]+' was killed: it did not end within 1 s \(status 1\)$", re.M)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Every kill is a warning, which pytest would keep."""
    log = logging.getLogger("ringleader")
    before = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(before)


@pytest.fixture
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is kept ready: whether there was time for one is no matter of what restarts leave behind."""
    monkeypatch.setattr(supervisor, "SPARE_AFTER", math.inf)


@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="the clock is faked by LD_PRELOAD")
def test_jumps_of_the_wall_clock_lose_nothing_hang_nothing_and_end_no_wait_early(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.clock", str(tmp_path), "4"],
        env=clock.environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["wrong"]
    assert found["items"] > 100
    assert found["off"] > 3600, "the clock did not jump"
    assert found["restarts"] == 0, "a worker was taken for hung"
    assert 1.0 <= found["waited"] < 30.0


def signalled(folder: Path, count: int, seed: int) -> dict[str, int]:
    """So many systems, one after the other on one directory, that get one signal or two at random times."""
    chance, ends, prefixes = random.Random(seed), dict[str, int](), list[str]()
    breeder = Breeder(["-m", "tests.torture.signals", str(folder)])
    try:
        for _ in range(count):
            bred = breeder.another()
            assert bred is not None
            try:
                number = chance.choice(SIGNALS)
                dead = bred.dead(chance.uniform(0.0, 1.2))
                assert not dead, "it ended without a signal"
                bred.signal(number)
                if chance.random() < 0.5 and not bred.dead(chance.uniform(0.0, 0.15)):
                    bred.signal(chance.choice(SIGNALS))
                children = [child.pid for child in psutil.Process(bred.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                children = []
            finally:
                assert bred.dead(60.0), "it did not end"
                bred.kill()
            dead_within(children, ORPHANS)
            ended = folder / f"ended-{bred.pid}"
            status = ExitStatus(int(ended.read_text())).name if ended.exists() else "before it listened"
            ended.unlink(missing_ok=True)
            ends[status] = ends.get(status, 0) + 1
            if (folder / "run" / IDENTITY).exists():
                prefixes.append(stale_prefix(identity_of(folder)))
    finally:
        breeder.close()
    assert ends.pop("FAILED", 0) == len(LATE.findall((folder / "log").read_text())), (folder / "log").read_text()
    verdict = torture(folder, seed=seed, kills=0)
    assert not verdict.wrong, f"seed {seed}: {verdict}"
    assert not left_over(prefixes)
    print(f"seed {seed}: {count} systems, {ends}, {verdict.items:,} items")
    return ends


@pytest.mark.timeout(900)
def test_signals_at_random_times_end_a_system_in_order_and_lose_nothing(tmp_path: Path) -> None:
    ends = signalled(tmp_path, 12, random.randrange(10**6))
    assert set(ends) <= {"OK", "NOT_DRAINED", "before it listened"}, ends


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_500_signals_at_random_times_end_a_system_in_order_and_lose_nothing(tmp_path: Path) -> None:
    ends = signalled(tmp_path, 500, random.randrange(10**6))
    assert set(ends) <= {"OK", "NOT_DRAINED", "before it listened"}, ends


MANY = """
    import os, sys
    from pathlib import Path
    from actors import StartFailed
    from actors.launch import prepare
    from tests.torture.topology import topology

    folder = Path(sys.argv[1])
    app = topology(folder)
    begin, begin_w = os.pipe()
    answers, answers_w = os.pipe()
    end, end_w = os.pipe()
    pids = []
    for number in range(50):
        pid = os.fork()
        if not pid:
            os.close(begin_w)
            os.close(end_w)
            os.read(begin, 1)
            try:
                system = app.start() if number % 10 == 0 else prepare(app).start()
                os.write(answers_w, b"%d won\\n" % os.getpid())
                os.read(end, 1)
                system.stop(drain=False)
            except StartFailed as refused:
                os.write(answers_w, b"%d %d %s\\n" % (os.getpid(), refused.status, refused.reason.split()[-1].encode()))
                os.read(end, 1)
            os._exit(0)
        pids.append(pid)
    os.close(begin_w)
    with open(answers, "rb", buffering=0) as file:
        told = [line.decode().strip() for line in (file.readline() for _ in pids)]
    os.close(end_w)
    for pid in pids:
        os.waitpid(pid, 0)
    print("\\n".join(told))
"""


@pytest.mark.timeout(600)
def test_of_50_starts_of_a_system_at_once_exactly_one_wins_and_the_others_say_who(tmp_path: Path) -> None:
    """Most of them launch no fork server before they have won: 50 of those at once take a slow machine minutes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MANY), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 50
    (winner,) = (pid for pid, *rest in answers if rest == ["won"])
    assert all(rest == [str(int(ExitStatus.HELD)), winner] for pid, *rest in answers if pid != winner), answers


@pytest.mark.parametrize("players", [1, 2, 3])
def test_a_cycle_whose_rings_hold_hardly_a_record_makes_progress(tmp_path: Path, players: int) -> None:
    """The largest record is half a ring, so that it fits wherever the padding falls: one or two of them are in it."""
    app = Topology("tight", directory=tmp_path / "run", ring_bytes=4096, max_message_bytes=max_record(4096) - 64,
                   outbox_limit_bytes=64 << 10)  # fmt: skip
    names = [f"p{number}" for number in range(players)]
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        app.worker(f"w-{name}", **{name: Player})
        app.route(name, Token, to=following)
    app.external("p0", Token)
    for name in names:
        app.external(name, Get)
    tokens, hops = 40, 30
    with app.start() as system:
        for _ in range(tokens):
            system.send("p0", Token(hops, bytes(1900)))
        wanted = tokens * (hops + 1)
        until(lambda: sum(system.ask(name, Get(), reply=Seen).n for name in names) == wanted, "all hops", 60.0)
    assert system.join() is ExitStatus.OK


# ---------------------------------------------------------------------------------------------------------------- leaks
def restarts_leave_nothing(folder: Path, restarts: int, at_once: int) -> dict[str, float]:
    """Growth per restart of what the supervisor's process holds, by a straight line behind the first quarter."""
    chance = random.Random(1)
    measured: dict[str, list[tuple[float, float]]] = {}
    me = psutil.Process()
    with topology(folder).start() as system:
        prefix = stale_prefix(identity_of(folder))
        done, least = 0, math.inf
        while done < restarts:
            epochs = {name: system.block(f"w-{name}").get(Field.RESTARTS) for name in WORKERS}
            chosen = chance.sample(WORKERS, at_once)
            done += kill_workers(chosen, lambda name: system.block(f"w-{name}").get(Field.PID))

            def again(chosen: list[str] = chosen, epochs: dict[str, int] = epochs) -> bool:
                blocks = {name: system.block(f"w-{name}") for name in chosen}
                return all(block.get(Field.RESTARTS) > epochs[name] for name, block in blocks.items()) and all(
                    block.get(Field.SESSION) and block.get(Field.PID) for block in blocks.values()
                )

            until(again, "the restarts")

            def closed(most: float = least) -> bool:
                return me.num_fds() <= most

            # What is read from who died is closed by a thread of its own, which may wait for the disk meanwhile.
            until(closed, "the descriptors of who died to be closed")
            least = min(least, me.num_fds())
            for what, value in (
                ("descriptors", me.num_fds()),
                ("threads", me.num_threads()),
                ("segments", sum(entry.name.startswith(prefix) for entry in os.scandir("/dev/shm"))),
                ("children", len(me.children())),
                ("resident bytes", me.memory_info().rss),
            ):
                measured.setdefault(what, []).append((done, value))
        system.stop(drain=False)
    growth = {what: slope(settled(points)) for what, points in measured.items()}
    print(f"{done} restarts, growth per restart: {growth}")
    for what in ("descriptors", "threads", "segments", "children"):
        values = [value for _, value in settled(measured[what])]
        assert abs(growth[what]) * restarts < 1, f"{what}: {values}"
    assert growth["resident bytes"] < 2048, measured["resident bytes"]
    return growth


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_spare")
def test_restarts_leave_no_descriptor_segment_thread_or_memory_behind(tmp_path: Path) -> None:
    restarts_leave_nothing(tmp_path, 200, 4)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("no_spare")
def test_1000_restarts_leave_no_descriptor_segment_thread_or_memory_behind(tmp_path: Path) -> None:
    restarts_leave_nothing(tmp_path, 1000, 4)


def test_a_leak_is_seen_as_a_slope() -> None:
    assert slope([(0, 5), (10, 5), (20, 5)]) == 0
    assert slope([(0, 0), (10, 5), (20, 10)]) == pytest.approx(0.5)
    assert slope([]) == slope([(1, 1)]) == 0
    assert settled([(n, n) for n in range(8)]) == [(n, n) for n in range(2, 8)]


# ----------------------------------------------------------------------------------------------------------------- soak
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_soak_with_a_kill_every_second_neither_grows_nor_falls_behind(tmp_path: Path) -> None:
    soak(tmp_path, 300.0)


def soak(folder: Path, seconds: float) -> dict[str, float]:
    """A worker is killed every second; growth per second of memory (of all processes) and of what is under way."""
    chance = random.Random(2)
    memory, backlog, journals = list[tuple[float, float]](), list[tuple[float, float]](), list[tuple[float, float]]()
    me = psutil.Process()
    base = me.memory_info().rss
    with topology(folder).start() as system:
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            kill_workers([chance.choice(WORKERS)], lambda name: system.block(f"w-{name}").get(Field.PID))
            threading.Event().wait(max(0.0, now + 1.0 - (time.monotonic() - began)))
            memory.append((now, me.memory_info().rss - base + sum(map(resident, me.children(recursive=True)))))
            blocks = [system.block(f"w-{name}") for name in WORKERS]
            backlog.append((now, sum(block.get(Field.OUTBOX_BYTES) for block in blocks)))
            journals.append((now, sum(block.get(Field.JOURNAL_BYTES) for block in blocks)))
        handled = system.block("w-sink").get(Field.HANDLED)
        system.stop(drain=False)
    growth = {
        "resident bytes": slope(settled(memory)),
        "backlog bytes": slope(settled(backlog)),
        "journal bytes": slope(settled(journals)),
    }
    highest = {"resident": max(y for _, y in memory), "backlog": max(y for _, y in backlog)}
    print(f"{len(memory)} kills in {seconds:g} s, {handled} handled at the end of the chain;")
    print(f"growth per second: {growth}; highest: {highest}")
    assert growth["resident bytes"] < 32 << 10, memory
    assert growth["backlog bytes"] < 512, backlog
    assert growth["journal bytes"] < 32 << 10, journals
    return growth


def resident(process: psutil.Process) -> int:
    try:
        rss: int = process.memory_info().rss
        return rss
    except psutil.NoSuchProcess:
        return 0
