"""What workers leave behind ends with them, and with the supervisor, however either of them ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors import orphans
from actors import process as process_module
from actors.guardian import children_of, is_ending
from actors.orphans import Reaper, sweep
from actors.process import WorkerProcess, stop_forkserver
from tests.actors import targets
from tests.actors.waiting import dead_within, text_of, until

ROOT = Path(__file__).parents[2]
KINDS = ["in its group", "in a session of its own", "a daemon", "a fork in a session of its own"]


pytestmark = pytest.mark.usefixtures("warm_forkserver")


def guardian() -> int:
    pid = process_module._server.pid
    assert pid is not None
    return pid


def fork_server() -> int:
    """The guardian's first child, which the kernel lists first. Those that it has adopted since may have smaller
    numbers."""
    return children_of(guardian())[0]


def descendants(started: list[WorkerProcess], path: Path, then: str = "hold") -> list[int]:
    started.append(WorkerProcess.start(targets.starts_descendants, (path, then)))
    pids = [int(pid) for pid in text_of(path).split()]
    assert len(pids) == len(KINDS)
    return pids


@contextlib.contextmanager
def killed_in_any_case(pids: list[int]) -> Iterator[None]:
    """A test that fails leaves nobody behind."""
    pidfds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield
    finally:
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


@contextlib.contextmanager
def marked(worker: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is marked as one of this worker, and a child of ours."""
    with subprocess.Popen(["sleep", "600"], env={orphans.MARK: f"{worker:010d}"}) as child:
        try:
            until(lambda: orphans._marked(child.pid, worker), "it to be executed")
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("then", ["hold", "end"])
def test_all_that_a_worker_started_goes_with_it(started, tmp_path: Path, then: str) -> None:
    pids = descendants(started, tmp_path / "one", then)
    others = descendants(started, tmp_path / "two")
    if then == "hold":
        os.kill(started[0].pid, signal.SIGKILL)
    assert select.select([started[0].pidfd], [], [], 60)[0]
    started[0].kill()  # as the supervisor does at every death
    dead_within(pids, 2)
    assert all(psutil.pid_exists(pid) for pid in others), "those of another worker stay"
    assert started[1].poll() is None


def test_what_comes_up_while_sweeping_is_swept_too(started, tmp_path: Path) -> None:
    """A daemon's own children lose their parent only when it dies."""
    started.append(WorkerProcess.start(targets.starts_a_chain, (tmp_path / "pids", 5)))
    pids = [int(pid) for pid in text_of(tmp_path / "pids").split()]
    assert len(pids) == 5
    os.kill(started[0].pid, signal.SIGKILL)
    assert select.select([started[0].pidfd], [], [], 60)[0]
    started[0].kill()
    dead_within(pids, 2)


def test_no_zombie_of_a_daemon_stays(started, tmp_path: Path) -> None:
    pids = descendants(started, tmp_path / "pids")
    os.kill(pids[2], signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pids[2]), "the daemon to be waited for")


def test_nobody_else_is_swept(started, tmp_path: Path) -> None:
    pids = descendants(started, tmp_path / "pids")
    assert sweep(started[0].pid + 100_000, guardian()) == []
    assert all(psutil.pid_exists(pid) for pid in pids)


def test_end_of_the_fork_server_is_the_end_of_all(started, tmp_path: Path) -> None:
    pids = descendants(started, tmp_path / "pids")
    before = guardian()
    os.kill(fork_server(), signal.SIGKILL)
    dead_within([before, started[0].pid, *pids], 5)
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert select.select([started[1].pidfd], [], [], 60)[0]
    assert started[1].poll() == 5
    assert guardian() != before


def test_death_of_the_guardian_is_the_death_of_its_workers_and_survived(started) -> None:
    started.append(WorkerProcess.start(targets.spins))
    os.kill(guardian(), signal.SIGKILL)
    dead_within([started[0].pid], 2)
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert select.select([started[1].pidfd], [], [], 60)[0]
    assert started[1].poll() == 5


@pytest.mark.parametrize("then", ["hold", "end"])
def test_what_a_worker_started_goes_with_it_when_the_guardian_was_killed(started, tmp_path: Path, then: str) -> None:
    pids = descendants(started, tmp_path / "pids", then)
    with marked(started[0].pid + 100_000) as other, killed_in_any_case(pids):
        if then == "end":
            assert select.select([started[0].pidfd], [], [], 60)[0]
        before = guardian()
        os.kill(before, signal.SIGKILL)
        dead_within([before, started[0].pid], 2)
        os.kill(pids[1], signal.SIGSTOP)
        started[0].kill()  # as the supervisor does at every death
        dead_within(pids, 2)
        assert other.poll() is None, "that of another worker stays"


def test_a_number_that_another_process_has_now_is_not_looked_for_everywhere() -> None:
    with marked(os.getpid()) as child:
        assert sweep(os.getpid(), 1 << 30) == []
        assert child.poll() is None


def test_a_guardian_that_is_stopped_cleans_up_when_it_is_to_end(started, tmp_path: Path) -> None:
    pids = descendants(started, tmp_path / "pids", "end")
    before = guardian()
    assert select.select([started[0].pidfd], [], [], 60)[0]
    assert started[0].poll() == 0
    with killed_in_any_case(pids):
        os.kill(before, signal.SIGSTOP)
        stop_forkserver(timeout=60)
        dead_within([before, *pids], 0)


def test_a_process_that_is_ending_is_told_from_one_that_lives() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        assert not is_ending(child.pid)
        child.kill()
        until(lambda: is_ending(child.pid), "its end")
    assert not is_ending(child.pid), "there is no such process"


def test_helpers_have_titles_and_keep_no_descriptors(started) -> None:
    started.append(WorkerProcess.start(targets.holds))
    assert Path(f"/proc/{guardian()}/cmdline").read_text() == "ringleader: guardian\0"
    server = fork_server()
    assert Path(f"/proc/{server}/cmdline").read_text() == "ringleader: fork server\0"
    fds = sorted(int(fd) for fd in os.listdir(f"/proc/{guardian()}/fd"))
    assert fds[:3] == [0, 1, 2]
    assert len(fds) == 4, "and its lifeline"
    assert os.getsid(guardian()) == guardian()


def test_children_are_found_without_the_kernels_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: len(children_of(guardian())) == 1, "those of the tests before to be waited for")
    listed, real = children_of(guardian()), os.listdir

    def without_lists(path: str) -> list[str]:
        if "task" in path:
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "listdir", without_lists)
    assert children_of(guardian()) == listed
    assert children_of(1 << 30) == []


SUPERVISOR = """
import sys, signal
from pathlib import Path
from actors.guardian import children_of
from actors.process import WorkerProcess, start_forkserver, _server
from tests.actors import targets
start_forkserver(("tests.actors.targets",))
worker = WorkerProcess.start(targets.starts_descendants, (Path(sys.argv[1]), "hold"))
print(worker.pid, _server.pid, *children_of(_server.pid), flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    "killed", ["supervisor", "its group", "supervisor and worker", "supervisor, server and worker"]
)
def test_grandchildren_go_when_the_supervisor_is_killed(tmp_path: Path, killed: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, tmp_path / "pids"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        worker, guard, server = [int(pid) for pid in run.stdout.readline().split()][:3]
        pids = [int(pid) for pid in text_of(tmp_path / "pids").split()]
        try:
            victims = [run.pid]
            if killed == "its group":
                victims = [pid for pid in [run.pid, server, guard, worker] if os.getpgid(pid) == run.pid]
                assert victims == [run.pid], "only the supervisor is in its group"
                os.killpg(run.pid, signal.SIGKILL)
            if "server" in killed:
                victims.append(server)
            if "and worker" in killed:
                victims.append(worker)
            for pid in victims:
                os.kill(pid, signal.SIGSTOP)
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):  # it has gone with the one before
                    os.kill(pid, signal.SIGKILL)
            took = dead_within([worker, server, guard, *pids], 2)
            print(f"{len(pids)} grandchildren gone after {took * 1000:.0f} ms")
        finally:
            run.kill()
            for pid in pids:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)


def test_stopped_descendants_go_too(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, tmp_path / "pids"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as run:
        assert run.stdout is not None
        worker, guard, server = [int(pid) for pid in run.stdout.readline().split()][:3]
        everyone = [*(int(pid) for pid in text_of(tmp_path / "pids").split()), worker, server, guard]
        with killed_in_any_case([*everyone, run.pid]):
            for pid in everyone:
                os.kill(pid, signal.SIGSTOP)
            run.kill()
            dead_within(everyone, 2)


def test_a_program_that_is_not_process_1_waits_for_nobody_elses_children() -> None:
    assert Reaper().reap() == []


def test_process_1_waits_for_the_dead_that_nobody_waits_for() -> None:
    now = 0.0
    reaper = Reaper(lambda: now)
    reaper.needed = True
    with subprocess.Popen(["true"]) as child:
        until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "it to be dead")
        assert reaper.reap() == []
        now = orphans.GRACE - 0.1
        assert reaper.reap() == []
        now = orphans.GRACE
        assert reaper.reap() == [child.pid]
        assert not psutil.pid_exists(child.pid)
        assert reaper.reap() == []
