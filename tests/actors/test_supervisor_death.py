"""Whatever becomes of the supervisor, nothing of its system stays, and nothing is lost; with real programs."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.evidence import process_state
from tests.actors.waiting import within

ROOT = Path(__file__).parents[2]
SHM = Path("/dev/shm")

SCRIPT = """
    import os, subprocess, sys
    sys.path.insert(0, ROOT)
    from actors import Handler, Message, State, Topology, handle

    class Tick(Message):
        n: int

    class Count(State):
        n: int = 0

    class Source(Handler):
        state: Count
        def on_start(self) -> None:
            subprocess.Popen(["sleep", "600"], start_new_session=True)
        def on_loop(self) -> float | None:
            if FINISH:
                self.stop_system()
                return 60.0
            self.state.n += 1
            self.send(Tick(self.state.n))
            return 0.001
        def on_stop(self) -> None:
            print("sent", self.state.n, flush=True)

    class Sink(Handler):
        state: Count
        @handle
        def on_tick(self, tick: Tick) -> None:
            assert tick.n == self.state.n + 1, (tick.n, self.state.n)
            self.state.n += 1
        def on_stop(self) -> None:
            print("handled", self.state.n, flush=True)

    app = Topology("mortal", directory=DIRECTORY, max_restarts=1000)
    app.worker("a", source=Source)
    app.worker("b", sink=Sink)
    app.route("source", Tick, to="sink")
"""
RUN = """
    if __name__ == "__main__":
        with app.start() as system:
            EXTRA
            print("up", flush=True)
            app_ended = system.join()
        print("status", int(app_ended), flush=True)
"""


def program(folder: Path, *, finish: bool = False, run: str = RUN, extra: str = "pass") -> list[str]:
    text = textwrap.dedent(SCRIPT) + textwrap.dedent(run)
    values = {"ROOT": repr(str(ROOT)), "DIRECTORY": repr(str(folder / "run")), "FINISH": str(finish), "EXTRA": extra}
    for name, value in values.items():
        text = text.replace(name, value)
    path = folder / "mortal.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


class Family:
    """A program and all its descendants, wherever they have gone: known by a variable in their environment."""

    def __init__(self, command: list[str]) -> None:
        self.tag = f"FAMILY={uuid.uuid4().hex}"
        name, _, value = self.tag.partition("=")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, name: value}
        )

    def living(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self.tag.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if process_state(pid) not in {"Z", ""}]

    def up(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "up\n", line + self.process.stderr.read() if self.process.stderr else line

    def kill(self) -> None:
        self.process.kill()
        try:
            within(2.0, lambda: not self.living(), "all of them to be gone")
        except AssertionError:
            raise AssertionError([(pid, title(pid), process_state(pid)) for pid in self.living()]) from None
        self.process.communicate()


@pytest.fixture
def families() -> Iterator[list[Family]]:
    started: list[Family] = []
    yield started
    for family in started:
        family.process.kill()
        for pid in family.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        family.process.communicate()


def kill_again_and_again(folder: Path, families: list[Family], times: int) -> None:
    chance, before = random.Random(times), set(SHM.glob("ringleader*"))
    for number in range(times):
        families.append(family := Family(program(folder)))
        if number % 3:
            family.up()
            threading.Event().wait(chance.uniform(0.0, 0.3))
        else:
            threading.Event().wait(chance.uniform(0.0, 1.0))  # in the middle of its start
        ours = [pid for pid in family.living() if title(pid).startswith("ringleader: ")]
        if ours and number % 2:
            with contextlib.suppress(ProcessLookupError):  # it was about to end anyway
                os.kill(chance.choice(ours), signal.SIGSTOP)  # whoever it is, it can do nothing for its own end
        family.kill()
    families.append(family := Family(program(folder, finish=True)))
    out, err = family.process.communicate(timeout=60)
    assert family.process.returncode == 0, err
    told = dict(line.split() for line in out.splitlines() if " " in line)
    assert told["handled"] == told["sent"] != "0"
    assert told["status"] == "0"
    assert set(SHM.glob("ringleader*")) <= before


def test_supervisor_killed_again_and_again_leaves_nobody_and_loses_nothing(tmp_path: Path, families) -> None:
    kill_again_and_again(tmp_path, families, 6)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_supervisor_killed_200_times_leaves_nobody_and_loses_nothing(tmp_path: Path, families) -> None:
    kill_again_and_again(tmp_path, families, 200)


NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def process_1() -> list[str]:
    if not can_unshare():
        pytest.skip("a process cannot be process 1 here: unshare --pid is not there, or not allowed")
    return NAMESPACES


RUN_AS_SCRIPT = """
    if __name__ == "__main__":
        assert os.getpid() == 1
        from actors import orphans
        orphans.GRACE = 0.2
        # Two generations of children, so that process 1 gets what it does not know of.
        subprocess.run(["sh", "-c", "sleep 0.1 & exec sleep 0"], check=True)
        import threading, time
        from actors.guardian import children_of
        orphaned = children_of(1)
        assert len(orphaned) == 1, orphaned
        def tell():
            while orphaned[0] in children_of(1) or not os.path.exists(DIRECTORY):
                time.sleep(0.05)
            print("up", flush=True)
        threading.Thread(target=tell, daemon=True).start()
        app.run()
        print("clean end", flush=True)
"""


def test_as_process_1_it_ends_on_sigterm_and_leaves_no_zombie(tmp_path: Path, families, process_1) -> None:
    command = [*process_1, *program(tmp_path, run=RUN_AS_SCRIPT)]
    families.append(family := Family(command))
    family.up()
    (inner,) = [
        int(pid) for pid in Path(f"/proc/{family.process.pid}/task/{family.process.pid}/children").read_text().split()
    ]
    os.kill(inner, signal.SIGTERM)
    out, err = family.process.communicate(timeout=30)
    assert (family.process.returncode, err) == (0, "")
    assert "clean end" in out
    within(2.0, lambda: not family.living(), "all of them to be gone")


def test_as_process_1_its_children_go_with_it(tmp_path: Path, families, process_1) -> None:
    families.append(family := Family([*process_1, *program(tmp_path)]))
    family.up()
    family.kill()
    # The next start is in another name space, where the same numbers mean others.
    families.append(family := Family([*process_1, *program(tmp_path, finish=True)]))
    out, err = family.process.communicate(timeout=60)
    assert family.process.returncode == 0, err
    assert "status 0" in out
