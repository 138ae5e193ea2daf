"""Full shared memory and full disks, real ones: small file systems in a mount namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from actors import ExitStatus

SCRIPT = """
    import sys
    from actors import Handler, Message, Topology, handle

    class Tick(Message):
        n: int

    class Sink(Handler):
        @handle
        def on_tick(self, tick: Tick) -> None: ...

    app = Topology("full", directory=sys.argv[1])
    app.worker("a", sink=Sink)
    app.external("sink")
    if __name__ == "__main__":
        app.run()
"""


FILLING = """
    import os, sys, time
    from actors import Handler, Message, State, Topology, handle
    from persist import JournalFull

    FIRST, LAST = 500, 5000
    GO = os.path.abspath(sys.argv[1] + "/../../go")

    class Tick(Message):
        n: int
        filling: bytes

    class Position(State):
        n: int = 0

    class Question(Message):
        pass

    class Answer(Message):
        n: int

    class Poke(Message):
        filling: bytes

    class Feed(Handler):
        state: Position

        def __init__(self, go):
            self.go = go

        def on_loop(self):
            if self.state.n == LAST:
                return float("inf")
            if self.state.n == FIRST and not os.path.exists(self.go):
                return 0.01
            self.state.n += 1
            self.send(Tick(self.state.n, bytes(1000)))

    class Relay(Handler):
        @handle
        def on_tick(self, tick: Tick) -> None:
            self.send(tick)

    class Sink(Handler):
        state: Position

        @handle
        def on_tick(self, tick: Tick) -> None:
            assert tick.n == self.state.n + 1, (tick.n, self.state.n)
            self.state.n = tick.n

        @handle
        def on_question(self, question: Question) -> None:
            self.reply(Answer(self.state.n))

        @handle
        def on_poke(self, poke: Poke) -> None: ...

    app = Topology("full", directory=sys.argv[1])
    app.worker("a", feed=Feed.spec(go=GO))
    app.worker("b", relay=Relay)
    app.worker("c", sink=Sink)
    app.route("feed", Tick, to="relay")
    app.route("relay", Tick, to="sink")
    app.external("sink", Question, Poke)

    def fill(path):
        with open(path, "ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass

    def until(condition):
        deadline = time.monotonic() + 100
        while not condition():
            assert time.monotonic() < deadline, system.status()
            time.sleep(0.01)

    if __name__ == "__main__":
        filler = sys.argv[1] + "/../filler"
        with app.start() as system:
            refused = []
            until(lambda: system.ask("sink", Question(), timeout=100, reply=Answer).n == FIRST)
            fill(filler)
            open(GO, "w").close()

            def is_full():
                fill(filler)
                try:
                    system.send("sink", Poke(bytes(20_000)))
                except JournalFull as error:
                    refused.append(error)
                return refused

            until(is_full)
            os.unlink(filler)

            def is_done():
                try:
                    return system.ask("sink", Question(), timeout=100, reply=Answer).n == LAST
                except JournalFull:
                    return False

            until(is_done)
            until(lambda: not system.status().alarms)
            after = system.status()
            print("refused:", type(refused[0]).__name__)
            print("restarts:", sum(worker.restarts for worker in after.workers), "dead:", after.dead_letters)
"""


BLOCKED = """
    import os, sys, time
    from actors import Handler, Message, State, Topology, handle

    LAST, BEATS = 2000, 50
    OUT = os.path.abspath(sys.argv[1] + "/../..")

    class Tick(Message):
        n: int
        filling: bytes

    class Beat(Message):
        n: int

    class Position(State):
        n: int = 0

    class Source(Handler):
        state: Position

        def __init__(self, go, first, last, make):
            self.go, self.first, self.last, self.make = go, first, last, make

        def on_loop(self):
            if self.state.n == self.last:
                return float("inf")
            if self.state.n == self.first and not os.path.exists(self.go):
                return 0.01
            self.state.n += 1
            self.send(self.make(self.state.n))

    class Feed(Source): ...
    class Drum(Source): ...

    class Relay(Handler):
        @handle
        def on_tick(self, tick: Tick) -> None:
            for part in range(3):
                self.send(Tick(3 * (tick.n - 1) + part + 1, tick.filling))

    class Counter(Handler):
        state: Position

        def __init__(self, out):
            self.out = out

        @handle
        def on_beat(self, beat: Beat) -> None:
            assert beat.n == self.state.n + 1
            self.state.n = beat.n
            with open(self.out, "a") as file:
                file.write(".")

    class Sink(Handler):
        state: Position

        @handle
        def on_tick(self, tick: Tick) -> None:
            assert tick.n == self.state.n + 1
            self.state.n = tick.n
            if tick.n == 3 * LAST:
                self.stop_system()

    app = Topology("full", directory=sys.argv[1])
    app.worker("a", feed=Feed.spec(go=OUT + "/go", first=1, last=LAST, make=lambda n: Tick(n, bytes(1000))))
    app.worker("b", relay=Relay, counter=Counter.spec(out=OUT + "/beats"))
    app.worker("c", drum=Drum.spec(go=OUT + "/drum", first=1, last=BEATS, make=lambda n: Beat(n)))
    app.worker("d", sink=Sink)
    app.route("feed", Tick, to="relay")
    app.route("relay", Tick, to="sink")
    app.route("drum", Beat, to="counter")

    def until(condition):
        deadline = time.monotonic() + 100
        while not condition():
            assert time.monotonic() < deadline, system.status()
            time.sleep(0.01)

    def worker(name):
        return next(one for one in system.status().workers if one.name == name)

    def beats():
        return os.path.getsize(OUT + "/beats") if os.path.exists(OUT + "/beats") else 0

    if __name__ == "__main__":
        with app.start() as system:
            until(lambda: worker("d").handled_messages == 3 and beats() == 1)
            system.pause("d")  # what b sends is not acknowledged, so nothing of its journal can go to make room
            filler = open(sys.argv[1] + "/../filler", "ab", buffering=0)

            def is_blocked():
                try:
                    while True:
                        filler.write(bytes(1 << 12))
                except OSError:
                    open(OUT + "/go", "w").close()
                return worker("b").disk_full and worker("a").disk_full

            until(is_blocked)
            open(OUT + "/drum", "w").close()
            until(lambda: beats() == BEATS)
            print("blocked:", worker("a").disk_full, worker("b").disk_full, worker("d").handled_messages)
            system.resume("d")
            os.unlink(filler.name)
            filler.close()
            system.join(60)
            print("dead:", system.status().dead_letters)
"""


LARGE = """
    import sys, time
    from actors import Handler, Message, Topology, handle

    class Make(Message):
        size: int

    class Made(Message):
        filling: bytes

    class Maker(Handler):
        @handle
        def on_make(self, make: Make) -> None:
            self.send(Made(bytes(make.size)))

    class Sink(Handler):
        @handle
        def on_made(self, made: Made) -> None: ...

    app = Topology("large", directory=sys.argv[1], durability="memory")
    app.worker("a", maker=Maker)
    app.worker("b", sink=Sink)
    app.external("maker", Make)
    app.route("maker", Made, to="sink")

    if __name__ == "__main__":
        with app.start() as system:
            system.send("maker", Make(64 << 20))
            deadline = time.monotonic() + 100
            while "waits" not in open(sys.argv[1] + "/log.jsonl").read():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            system.stop(drain=False)
"""


def run(folder: Path, mounts: dict[Path, str], text: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    """The script in a mount namespace where these directories are file systems of these sizes."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    mount = " && ".join(f"mount -t tmpfs -o size={size},mode=700 tmpfs {path}" for path, size in mounts.items())
    command = f"{mount} && exec {sys.executable} {script} {folder}/disk/run"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=110, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/disk"],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"cannot mount here (uid {os.getuid()}): {tried.stderr.decode().strip()}")
    return tmp_path


def test_full_shared_memory_is_a_clear_error_at_start(folder: Path) -> None:
    ended = run(folder, {Path("/dev/shm"): "64k"})
    assert ended.returncode == ExitStatus.NO_SPACE
    assert "shared memory" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_full_disk_is_a_clear_error_at_start(folder: Path) -> None:
    ended = run(folder, {folder / "disk": "4k"})
    assert ended.returncode == ExitStatus.NO_SPACE
    assert "no room on disk" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_disk_that_gets_full_refuses_sends_and_all_goes_on_when_there_is_room(folder: Path) -> None:
    ended = run(folder, {folder / "disk": "8m"}, FILLING)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["refused: JournalFull", "restarts: 0 dead: 0"]
    assert ended.returncode == ExitStatus.OK


def test_what_only_consumes_goes_on_in_a_worker_whose_sends_find_no_room(folder: Path) -> None:
    ended = run(folder, {folder / "disk": "12m"}, BLOCKED)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["blocked: True True 3", "dead: 0"]
    assert ended.returncode == ExitStatus.OK


def test_a_message_that_finds_no_room_in_shared_memory_waits_and_says_so(folder: Path) -> None:
    ended = run(folder, {Path("/dev/shm"): "16m"}, LARGE)
    assert ended.returncode == 0, ended.stderr
    assert (
        "message gateway/1 waits, and all behind it: there is no room for what it sends: no room on disk for"
        in ended.stderr
    )
    assert ended.stderr.count("waits") == 1


def test_an_on_loop_that_finds_no_room_in_shared_memory_waits_and_says_so(folder: Path) -> None:
    source = LARGE.replace("@handle\n        def on_make(self, make: Make)", "def on_loop(self)")
    source = source.replace("make.size", "64 << 20").replace('app.external("maker", Make)', "")
    ended = run(folder, {Path("/dev/shm"): "16m"}, source.replace('system.send("maker", Make(64 << 20))', ""))
    assert ended.returncode == 0, ended.stderr
    assert "on_loop of maker waits: there is no room for what it sends: no room on disk for" in ended.stderr
    assert ended.stderr.count("waits") == 1
