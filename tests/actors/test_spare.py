"""A process that is born ahead of its time: who gets it, and that it never stays."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import actors
from actors import process as process_module
from actors.birth import Birth
from actors.process import LaunchFailed, WorkerProcess, drop_spare, keep_spare, stop_forkserver
from tests.actors import targets
from tests.actors.waiting import dead_within, text_of, until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("warm_forkserver")


@pytest.fixture(autouse=True)
def none_stays() -> Iterator[None]:
    yield
    drop_spare()


def spare() -> Birth:
    """One that waits to be told what it is to be."""
    with WorkerProcess.start(targets.returns, (0,)).borrowed() as (pidfd, _):  # keeps none before the first answer
        select.select([pidfd], [], [], 60)
    keep_spare()
    made = process_module._spare
    assert made is not None
    until(lambda: made.well and made.pid, "the spare to be born")
    until(lambda: " ".join(psutil.Process(made.pid).cmdline()) == "ringleader: spare", "the spare to wait")
    return made


def test_the_next_start_is_the_spare_which_becomes_a_worker_like_any_other(started, tmp_path: Path) -> None:
    waiting = spare()
    pid = waiting.pid
    started.append(WorkerProcess.start(targets.tells_about_itself, (tmp_path / "facts",), "ringleader: a/b"))
    assert started[0].pid == pid
    text = text_of(tmp_path / "facts")
    assert '"cmdline": "ringleader: a/b\\u0000"' in text
    assert f'"session": {pid}' in text
    started.append(WorkerProcess.start(targets.returns, (3,)))
    assert started[1].pid != pid


def test_it_is_told_where_it_is_and_what_it_may_import_only_then(started, tmp_path: Path, monkeypatch) -> None:
    spare()
    (tmp_path / "found_later.py").write_text("import os\ndef target(path): open(path, 'x').write(os.getcwd())\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import found_later  # type: ignore[import-not-found]

    started.append(WorkerProcess.start(found_later.target, (str(tmp_path / "place"),)))
    assert text_of(tmp_path / "place") == str(tmp_path)


def test_a_spare_that_died_is_not_used_and_replaced(started) -> None:
    waiting = spare()
    os.kill(waiting.pid, signal.SIGKILL)
    until(lambda: not waiting.well, "its death to be seen")
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert started[0].pid != waiting.pid
    until(lambda: started[0].poll() == 5, "the other one to end")
    dead = spare().pid
    os.kill(dead, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(dead), "it to be waited for")
    keep_spare()
    assert process_module._spare is None, "the dead one is let go of"
    assert spare().pid != dead
    drop_spare()


def test_a_spare_that_was_stopped_goes_on(started, tmp_path: Path) -> None:
    waiting = spare()
    os.kill(waiting.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(waiting.pid).status() == psutil.STATUS_STOPPED, "the spare to be stopped")
    started.append(WorkerProcess.start(targets.tells_about_itself, (tmp_path / "facts",)))
    assert started[0].pid == waiting.pid
    assert text_of(tmp_path / "facts")


def test_it_is_no_worker_and_keeps_nothing_up() -> None:
    pid = spare().pid
    stop_forkserver()
    dead_within([pid], 2)
    pid = spare().pid
    drop_spare()
    dead_within([pid], 2)


SUPERVISOR = """
import signal
from actors import process
from tests.actors import targets
worker = process.WorkerProcess.start(targets.holds)
process.keep_spare()
while not (process._spare.well and process._spare.pid):
    pass
print(worker.pid, process._spare.pid, flush=True)
signal.pause()
"""


def test_it_dies_with_its_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        pids = [int(pid) for pid in run.stdout.readline().split()]
        run.kill()
        dead_within(pids, 2)


def test_a_fork_that_fails_fails_one_start_and_nothing_else(started, tmp_path: Path) -> None:
    """The fork server of a program that may have so many processes and no more."""
    started.append(WorkerProcess.start(targets.holds))
    code = "import os\nreal = os.fork\ndef fork():\n    if os.path.exists({!r}):\n"
    code += "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n    return real()\nos.fork = fork\n"
    (tmp_path / "no_fork_by_test.py").write_text(code.format(str(tmp_path / "none left")))
    started[0].kill()
    until(lambda: started[0].poll() is not None, "it to end")
    stop_forkserver()
    sys.path.insert(0, str(tmp_path))
    try:
        process_module.start_forkserver(("no_fork_by_test", "tests.actors.targets"))
        started.append(WorkerProcess.start(targets.holds))
        server = process_module._server.pid
        (tmp_path / "none left").touch()
        with pytest.raises(LaunchFailed, match=r"no process can be forked \(Resource temporarily unavailable\)"):
            WorkerProcess.start(targets.returns, (0,))
        (tmp_path / "none left").unlink()
        started.append(WorkerProcess.start(targets.returns, (5,)))
        until(lambda: started[2].poll() == 5, "the next one to end")
        assert started[1].poll() is None
        assert process_module._server.pid == server
    finally:
        sys.path.remove(str(tmp_path))
        for process in started:
            process.kill()
        until(lambda: all(process.poll() is not None for process in started), "all to end")
        stop_forkserver()
        process_module.start_forkserver(("tests.actors.targets",))


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = "import sys, actors.worker; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = {"actors.supervisor", "actors.topology", "actors.gateway", "rich", "psutil"}
    helpers = {"cloudpickle", "difflib", "tempfile"}  # for mistakes, other systems, and what goes by value
    assert not (parts | helpers) & set(ran.stdout.split())
    for name in actors.__all__:
        assert name in dir(actors)
        assert getattr(actors, name) is not None
    assert set(actors._HOME_OF) == set(actors.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = actors.Nobody  # type: ignore[attr-defined]
