"""What is made of what the kernel says; with files of our own, and with a real control group where one can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.evidence import BELIEVED, MemoryEvidence, counter_file, process_state
from tests.actors.faked import process, send
from tests.actors.waiting import until

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 4\noom 2\noom_kill {}\noom_group_kill 0\n"


class Kernel:
    def __init__(self, folder: Path, text: str) -> None:
        self.file, self.text, self.now, self.killed = folder / "memory.events", text, 0.0, 3
        self.kills(0)
        self.evidence = MemoryEvidence(self.file, log=None, clock=lambda: self.now)

    def kills(self, count: int) -> None:
        self.killed += count
        self.file.write_text(self.text.format(self.killed))


@pytest.fixture(params=[V1, V2], ids=["version 1", "version 2"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, request.param)


def test_what_was_counted_before_says_nothing(kernel: Kernel) -> None:
    assert kernel.evidence.of(1) == ""


def test_a_kill_for_memory_explains_one_death(kernel: Kernel) -> None:
    kernel.kills(1)
    assert "for lack of memory" in kernel.evidence.of(1)
    assert kernel.evidence.of(2) == ""
    kernel.kills(2)
    assert kernel.evidence.of(3)
    assert kernel.evidence.of(4)
    assert kernel.evidence.of(5) == ""


def test_a_kill_long_ago_explains_nothing(kernel: Kernel) -> None:
    kernel.kills(1)
    kernel.evidence.look()
    kernel.now += BELIEVED + 1
    assert kernel.evidence.of(1) == ""


def test_a_counter_that_cannot_be_read_is_no_evidence_and_no_error(kernel: Kernel) -> None:
    kernel.file.unlink()
    assert kernel.evidence.of(1) == ""
    kernel.file.write_text("oom_kill much\n")
    assert kernel.evidence.of(1) == ""
    kernel.file.write_text(kernel.text.format(1000))
    assert kernel.evidence.of(1) == "", "how many of these are new is not known"
    kernel.file.write_text(kernel.text.format(1001))
    assert kernel.evidence.of(1)


def test_the_log_of_the_kernel_names_the_process(tmp_path: Path) -> None:
    log, counter = tmp_path / "kmsg", tmp_path / "none"
    log.write_text("3,1,1,-;Memory cgroup out of memory: Killed process 41 (ringleader: old) total-vm:1kB\n")
    evidence = MemoryEvidence(counter, log=log)
    with log.open("a") as file:
        file.write("3,2,2,-;Memory cgroup out of memory: Killed process 42 (ringleader: tra) total-vm:1kB\n")
    assert evidence.of(41, "ringleader: old") == "", "that was before"
    assert "names this process" in evidence.of(42, "ringleader: trades/stats")
    evidence.close()
    evidence.close()


def test_a_number_of_another_name_space_proves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("")
    evidence = MemoryEvidence(tmp_path / "none", log=log)
    log.write_text("3,2,2,-;Out of memory: Killed process 42 (firefox) total-vm:1kB\n")
    assert evidence.of(42, "ringleader: trades/stats") == ""
    evidence.close()


def test_the_control_group_is_found(tmp_path: Path) -> None:
    one, two = b"5:devices:/\n4:memory:/jobs/7\n0::/\n", b"0::/user.slice/app.scope\n"
    assert counter_file(one, tmp_path) is None
    for place, text in {"memory/jobs/7/memory.oom_control": V1, "user.slice/app.scope/memory.events": V2}.items():
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(text.format(0))
    assert counter_file(one, tmp_path) == tmp_path / "memory/jobs/7/memory.oom_control"
    assert counter_file(two, tmp_path) == tmp_path / "user.slice/app.scope/memory.events"
    (tmp_path / "memory.events").write_text(V2.format(0))
    assert counter_file(b"0::/../elsewhere\n", tmp_path) == tmp_path / "memory.events"
    assert counter_file(b"nonsense\n", tmp_path) is None


def test_states_of_processes() -> None:
    with process() as child:
        until(lambda: process_state(child.pid) == "S", "it to sleep")
        import signal

        send(child.pid, signal.SIGSTOP)
        assert process_state(child.pid) == "T"
        child.kill()
        until(lambda: process_state(child.pid) == "Z", "it to be dead")
    assert process_state(child.pid) == ""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own with little memory, version 1 or 2."""
    own = counter_file()
    if own is None:
        pytest.skip("no control group counts here what the kernel kills for memory")
    path = own.parent / f"ringleader-test-{os.getpid()}"
    try:
        path.mkdir()
        try:
            limit = path / ("memory.max" if own.name == "memory.events" else "memory.limit_in_bytes")
            limit.write_text(str(48 << 20))
            yield path
        finally:
            path.rmdir()
    except OSError as refused:
        pytest.skip(f"no control group can be made here: {refused}")


EATS = "import sys; sys.stdin.readline(); bytearray(256 << 20)"


def test_a_process_that_the_kernel_really_killed_for_memory(group: Path) -> None:
    name = "memory.events" if (group / "memory.events").exists() else "memory.oom_control"
    evidence = MemoryEvidence(group / name, log=None)
    with subprocess.Popen([sys.executable, "-c", EATS], stdin=subprocess.PIPE) as child:
        (group / "cgroup.procs").write_text(str(child.pid))
        child.communicate(b"\n", timeout=30)
    assert child.returncode == -9
    assert "for lack of memory" in evidence.of(child.pid)
    assert evidence.of(child.pid) == ""
