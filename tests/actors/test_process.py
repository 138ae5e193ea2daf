"""Worker processes, for real: what they are born with, how their ends are told, that none outlives its supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from multiprocess import spawn

from actors import forkserver as forkserver_module
from actors import process as process_module
from actors.exits import WorkerExit
from actors.guardian import children_of
from actors.process import LaunchFailed, WorkerProcess, start_forkserver, stop_forkserver
from tests.actors import targets
from tests.actors.faked import send
from tests.actors.waiting import dead_within, text_of, until

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("warm_forkserver")


def guardian_pid() -> int:
    pid = process_module._server.pid
    assert pid is not None
    return pid


def server_pid() -> int:
    """The fork server: the guardian's first child, for the guardian adopts others only later. Numbers of processes wrap
    around, so it need not have the smallest one; the kernel lists the first one first."""
    until(lambda: children_of(guardian_pid()), "the fork server to be forked")
    return children_of(guardian_pid())[0]


def ended(process: WorkerProcess, seconds: float = 60.0) -> int:
    assert select.select([process.pidfd], [], [], seconds)[0], f"{process.title} did not end"
    code = process.poll()
    assert code is not None
    return code


@pytest.mark.parametrize(
    ("target", "argument", "code"),
    [
        (targets.returns, None, 0),
        (targets.returns, 7, 7),
        (targets.exits, 66, 66),
        (targets.kills_itself, signal.SIGKILL, -9),
        (targets.kills_itself, signal.SIGSEGV, -11),
        (targets.kills_itself, signal.SIGTERM, -15),
    ],
)
def test_exit_code_or_signal_is_reported(started, target, argument, code) -> None:
    started.append(WorkerProcess.start(target, (argument,)))
    assert ended(started[0]) == code
    assert started[0].poll() == code


def test_no_exit_code_while_it_is_not_dead(started) -> None:
    started.append(WorkerProcess.start(targets.holds))
    assert started[0].poll() is None
    os.kill(started[0].pid, signal.SIGSTOP)
    assert started[0].poll() is None
    started[0].kill()
    assert ended(started[0]) == -signal.SIGKILL


def test_exit_code_is_reported_by_a_fork_server_that_was_stopped(started, monkeypatch: pytest.MonkeyPatch) -> None:
    started.append(WorkerProcess.start(targets.holds))
    server = server_pid()
    send(server, signal.SIGSTOP)
    monkeypatch.setattr(process_module, "WAKE_AFTER", 0.1)
    os.kill(started[0].pid, signal.SIGKILL)
    assert ended(started[0]) == -signal.SIGKILL
    assert server_pid() == server


def test_worker_is_set_apart_from_the_terminal(started, tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGINT, signal.SIGTERM})
    try:
        started.append(
            WorkerProcess.start(targets.tells_about_itself, (tmp_path / "facts",), "ringleader: trades/stats")
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    facts = json.loads(text_of(tmp_path / "facts"))
    assert facts["group"] == facts["session"] == facts["pid"] == started[0].pid
    assert facts["sigint ignored"]
    assert facts["sigterm default"]
    assert facts["blocked"] == []
    assert facts["cmdline"] == "ringleader: trades/stats\0"
    assert facts["comm"] == "ringleader: tra"


def test_descriptors_are_passed_in_their_order(started) -> None:
    pipes = [os.pipe() for _ in range(2)]
    started.append(WorkerProcess.start(targets.writes_to_what_it_was_given, pass_fds=[writer for _, writer in pipes]))
    for _, writer in pipes:
        os.close(writer)
    assert ended(started[0]) == 0
    for number, (reader, _) in enumerate(pipes):
        assert os.read(reader, 10) == str(number).encode()
        assert os.read(reader, 10) == b"", "nobody else keeps the other end"
        os.close(reader)


def descriptors(pid: int) -> set[str]:
    """The pipes and sockets of a process that are not its standard streams."""
    links = {fd.name: os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    streams = {links.get(name) for name in "012"}
    return {to for to in links.values() if to.startswith(("pipe:", "socket:")) and to not in streams}


def test_worker_does_not_keep_the_fork_server_up(started, tmp_path: Path) -> None:
    started.append(WorkerProcess.start(targets.starts_a_grandchild, (tmp_path / "pid", "hold")))
    grandchild = int(text_of(tmp_path / "pid"))
    assert len(descriptors(server_pid())) >= 3, "the lifeline, requests, and where to tell an end"
    for pid in (started[0].pid, grandchild):
        assert not descriptors(pid) & descriptors(server_pid())


def test_signals_to_everyone_do_not_end_the_fork_server(started) -> None:
    server = server_pid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(server, number)
    started.append(WorkerProcess.start(targets.returns, (3,)))
    assert ended(started[0]) == 3
    assert server_pid() == server


def test_main_module_is_not_run_again_in_the_worker(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import select, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from actors.process import WorkerProcess\n"
        "from tests.actors import targets\n"
        "print('main runs', flush=True)\n"
        f"process = WorkerProcess.start(targets.tells_about_itself, (Path({str(tmp_path / 'facts')!r}),))\n"
        "select.select([process.pidfd], [], [])\n"
        "process.close()\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "main runs\n"
    assert json.loads(text_of(tmp_path / "facts"))["main"] != str(script)


@pytest.mark.parametrize("then", ["hold", "end"])
def test_kill_takes_grandchildren_along_even_after_death(started, tmp_path: Path, then: str) -> None:
    started.append(WorkerProcess.start(targets.starts_a_grandchild, (tmp_path / "pid", then)))
    grandchild = int(text_of(tmp_path / "pid"))
    if then == "end":
        assert ended(started[0]) == 0
        assert psutil.pid_exists(grandchild)
    started[0].kill()
    dead_within([grandchild], 2)
    assert ended(started[0]) == (0 if then == "end" else -signal.SIGKILL)


def test_close_ends_what_still_lives() -> None:
    process = WorkerProcess.start(targets.spins)
    pid = process.pid
    process.close()
    process.close()
    dead_within([pid], 2)


def test_starts_leave_no_descriptor_behind() -> None:
    def run_one() -> None:
        process = WorkerProcess.start(targets.returns, (0,))
        ended(process)
        process.close()

    run_one()
    gc.collect()  # what the tests before have left would be let go of at any moment, with its descriptors
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        run_one()
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_arguments_arrive(started, tmp_path: Path) -> None:
    text = "x" * 3_000_000  # many times what a pipe holds
    started.append(WorkerProcess.start(targets.write, (tmp_path / "text", text)))
    assert ended(started[0]) == 0
    assert (tmp_path / "text").read_text() == text


def test_fork_server_imports_what_this_program_can_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told.py").write_text("import os, sys; open(__file__ + '.pid', 'x').write(str(os.getpid()))")
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    stop_forkserver()
    start_forkserver(("broken", "told", "tests.actors.targets"))
    with contextlib.closing(WorkerProcess.start(targets.returns, (4,))) as process:
        assert ended(process) == 4
    assert (tmp_path / "told.py.pid").read_text() == str(server_pid())


def test_stuck_fork_server_is_a_failed_launch(started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(WorkerProcess.start(targets.returns, (0,))) as process:
        assert ended(process) == 0
    server = server_pid()
    os.kill(server, signal.SIGSTOP)
    try:
        monkeypatch.setattr(process_module, "LAUNCH_TIMEOUT", 0.2)
        monkeypatch.setattr(forkserver_module, "CLEANING", 60.0)
        monkeypatch.setattr(process_module._server, "wake", lambda: None)
        reason = r"'ringleader: worker' could not be launched: .*timed out, so it was ended"
        with pytest.raises(LaunchFailed, match=reason):
            WorkerProcess.start(targets.write, (tmp_path / "ran", "it ran after all"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGCONT)
    monkeypatch.undo()
    assert not psutil.pid_exists(server)
    started.append(WorkerProcess.start(targets.returns, (0,)))
    assert ended(started[0]) == 0
    assert not (tmp_path / "ran").exists()


def test_new_fork_server_is_left_to_import(started, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_forkserver()
    start_forkserver(("tests.actors.targets",))
    server = server_pid()
    os.kill(server, signal.SIGSTOP)
    monkeypatch.setattr(process_module, "FIRST_TIMEOUT", 0.2)
    monkeypatch.setattr(process_module._server, "wake", lambda: None)
    with pytest.raises(LaunchFailed, match=r"does not answer \(timed out\)$"):
        WorkerProcess.start(targets.returns, (0,))
    os.kill(server, signal.SIGCONT)
    monkeypatch.undo()
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert ended(started[0]) == 5
    assert server_pid() == server


def test_fork_server_that_was_stopped_is_woken(started, monkeypatch: pytest.MonkeyPatch) -> None:
    server, guardian = server_pid(), guardian_pid()
    started.append(WorkerProcess.start(targets.holds))
    for pid in (server, guardian):
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(process_module, "WAKE_AFTER", 0.1)
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert ended(started[1]) == 5
    assert (server_pid(), guardian_pid()) == (server, guardian)
    assert not stopped(guardian)
    assert started[0].poll() is None


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("not executable", r"it ended with exit status 255, as where .*/not-python cannot be executed by this user"),
        ("ends at once", r"it ended with exit status 9\b"),
        ("killed", r"it ended with exit status 137\b"),
    ],
)
def test_end_of_a_new_fork_server_is_told_with_its_exit_status(tmp_path: Path, how: str, told: str) -> None:
    program = tmp_path / "not-python"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o600 if how == "not executable" else 0o700)
    stop_forkserver()
    executable, boot = spawn.get_executable(), forkserver_module._BOOT
    try:
        if how == "killed":
            forkserver_module._BOOT = boot.replace("sys.path[:] =", "os.kill(os.getpid(), 9)\nsys.path[:] =")
        else:
            spawn.set_executable(str(program))
        with pytest.raises(LaunchFailed, match=told):
            WorkerProcess.start(targets.returns, (0,))
    finally:
        spawn.set_executable(executable)
        forkserver_module._BOOT = boot
        stop_forkserver()
    with contextlib.closing(WorkerProcess.start(targets.returns, (5,))) as process:
        assert ended(process) == 5


def test_death_of_the_fork_server_is_the_death_of_its_workers_and_survived(started) -> None:
    started.append(WorkerProcess.start(targets.spins))
    os.kill(server_pid(), signal.SIGKILL)
    assert ended(started[0]) in {WorkerExit.LOST, -signal.SIGKILL}
    dead_within([started[0].pid], 2)
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert ended(started[1]) == 5


def test_fork_server_that_died_and_was_waited_for_by_others_is_replaced(started) -> None:
    server, guardian = server_pid(), guardian_pid()
    os.kill(server, signal.SIGKILL)
    os.waitpid(guardian, 0)  # as a program does that waits for any child
    started.append(WorkerProcess.start(targets.returns, (5,)))
    assert ended(started[0]) == 5
    assert server_pid() != server


def test_fork_server_is_not_stopped_under_a_living_worker(started) -> None:
    started.append(WorkerProcess.start(targets.holds, (), "ringleader: a/b"))
    with pytest.raises(RuntimeError, match="ringleader: a/b"):
        stop_forkserver()
    started[0].kill()
    ended(started[0])
    server = server_pid()
    stop_forkserver(timeout=60)
    assert not psutil.pid_exists(server)
    stop_forkserver()
    started.append(WorkerProcess.start(targets.returns, (1,)))
    assert ended(started[1]) == 1


def test_starting_from_a_thread(started) -> None:
    thread = threading.Thread(target=lambda: started.append(WorkerProcess.start(targets.holds)))
    thread.start()
    thread.join()
    # PR_SET_PDEATHSIG follows the thread that forked: that is the fork server's, so the end of ours means nothing.
    assert not select.select([started[0].pidfd], [], [], 0.1)[0]


SUPERVISOR = """
import os, sys, signal, threading
from actors.guardian import children_of
from actors.process import WorkerProcess, start_forkserver, _server
from tests.actors import targets
start_forkserver(("tests.actors.targets",))
workers = [WorkerProcess.start(target) for target in (targets.holds, targets.spins, targets.stops_itself)]
servers = [_server.pid, *children_of(_server.pid)]
extra = sys.argv[1]
if "forked" in extra:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    print(pid)
if "server stopped" in extra:
    # With a request under way, as at a kill in the middle of a start.
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    request, sent = _server.request, threading.Event()
    _server.request = lambda *what: (request(*what), sent.set())[0]
    threading.Thread(target=WorkerProcess.start, args=(targets.holds,), daemon=True).start()
    sent.wait()
print(len(servers), *servers, *[worker.pid for worker in workers], flush=True)
signal.pause()
"""


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("extra", ["", "forked", "server stopped", "forked, server stopped"])
def test_workers_are_gone_when_the_supervisor_is_killed(extra: str) -> None:
    """One that waits, one that spins, one that is stopped; by SIGKILL to the supervisor alone.

    With a fork of the supervisor around, which has all its descriptors; with a fork server that is stopped, too.
    """
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, extra], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as run:
        assert run.stdout is not None
        fork = int(run.stdout.readline()) if "forked" in extra else None
        count, *pids = map(int, run.stdout.readline().split())
        servers, pids = pids[:count], pids[count:]
        assert len(servers) == 2
        assert len(pids) == 3
        try:
            until(lambda: stopped(pids[2]), "the third worker to stop itself")
            until(lambda: psutil.Process(pids[1]).cpu_times().user > 0, "the second worker to spin")
            run.kill()
            took = dead_within(pids, 2)
            dead_within(servers, 2)
            print(f"{len(pids)} workers gone {took * 1000:.1f} ms after SIGKILL to their supervisor")
        finally:
            run.kill()
            if fork is not None:
                os.kill(fork, signal.SIGKILL)
            dead_within([*servers, *pids], 5)


FORKED = """
import os
from actors.process import WorkerProcess, _server
from tests.actors import targets
worker = WorkerProcess.start(targets.holds)
lifelines = worker._birth.lifeline, worker._birth.status, _server._lifeline, _server._requests.fileno()
pid = os.fork()
found = []
for fd in lifelines:
    try:
        os.fstat(fd)
        found.append("open")
    except OSError:
        found.append("closed")
if pid:
    os.waitpid(pid, 0)
print(*found, flush=True)
os._exit(0)
"""


def test_fork_of_the_supervisor_holds_no_lifeline() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.splitlines() == ["closed closed closed closed", "open open open open"]


ARMED = """
import fcntl, os, sys
from actors import newborn
read, write = os.pipe()
{prepare}
newborn.arm_parent_death(read, {server})
print("armed", flush=True)
os.read(0, 1)
os.close(write)
while True:
    pass
"""


def run_armed(prepare: str = "", server: str = "None") -> subprocess.CompletedProcess[str]:
    code = ARMED.format(prepare=prepare, server=server)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, input="x", capture_output=True, text=True, timeout=60, check=False)


def test_supervisor_that_died_before_arming_is_noticed() -> None:
    ran = run_armed("os.close(write)")
    assert (ran.returncode, ran.stdout) == (WorkerExit.ORPHANED, "")


def test_fork_server_that_died_before_arming_is_noticed() -> None:
    ran = run_armed(server="os.getppid() + 1")
    assert (ran.returncode, ran.stdout) == (WorkerExit.ORPHANED, "")


def test_parent_with_pid_1_is_not_taken_for_an_orphan() -> None:
    ran = run_armed("os.getppid = lambda: 1", server="1")
    assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, "armed\n")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETSIG"), reason="this system has the fallback only")
def test_fallback_where_the_kernel_cannot_send_the_signal() -> None:
    ran = run_armed("del fcntl.F_SETSIG")
    assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, "armed\n")
