"""What a container is to a system, without one: PID 1 of a PID namespace, little shared memory, a read-only root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.exits import ExitStatus

from .running import ROOT, Running
from .waiting import until

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private"]


def can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_unshare(), reason="may not make namespaces here")


class Container:
    """`ringleader run` as PID 1. `mounts` is done before, in its own mount namespace."""

    def __init__(self, folder: Path, mounts: str) -> None:
        script = f'{mounts} && exec {sys.executable} -m actors run "$@"'
        self.running = Running(folder, command=[*UNSHARE, "sh", "-e", "-c", script, "sh"], up=False, cwd=ROOT)

    @property
    def main(self) -> psutil.Process:
        """Its PID 1, as it is seen from outside."""
        (child,) = psutil.Process(self.running.process.pid).children()
        return child

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--target", str(self.main.pid), "--pid", "--mount", *command],
            env={**os.environ, "RINGLEADER_HOME": str(self.running.home), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )

    def ringleader(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.inside(sys.executable, "-m", "actors", *arguments)

    def up(self) -> None:
        def works() -> bool:
            assert self.running.process.poll() is None, self.running.end()
            return bool(psutil.Process(self.running.process.pid).children()) and self.running.handled() > 0

        until(works, "the system to handle something", 60)


@pytest.fixture
def containers() -> Iterator[list[Container]]:
    made: list[Container] = []
    yield made
    for container in made:
        container.running.kill()


def test_as_pid_1_it_takes_commands_and_drains_on_sigterm(tmp_path: Path, containers: list[Container]) -> None:
    """With a read-only root, too: written is to the run directory and shared memory only."""
    (tmp_path / "home").mkdir()
    mounts = (
        f"mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /var/tmp"
        f" && mount --bind {tmp_path}/home {tmp_path}/home && mount -o remount,bind,ro /"
    )
    containers.append(container := Container(tmp_path, mounts))
    container.up()
    assert (
        container.inside("sh", "-c", "test $(readlink /proc/1/exe) = $(readlink -f $0)", sys.executable).returncode == 0
    )
    assert container.inside("touch", "/root-is-read-only").returncode != 0
    assert container.ringleader("status", "live").stdout.startswith("live: running\n")
    done = container.ringleader("restart", "live", "stats")
    assert (done.returncode, done.stderr) == (0, "")
    assert "stats: restarted, process " in done.stdout
    # An orphan of the container: PID 1 is its parent now, and must not keep it as a zombie.
    container.inside("sh", "-c", "(setsid sleep 1000 >/dev/null 2>&1 &); true")

    def sleeping() -> list[psutil.Process]:
        return [child for child in container.main.children() if child.name() == "sleep"]

    until(lambda: sleeping(), "the orphan to have PID 1 as its parent", 30)
    (orphan,) = sleeping()
    orphan.kill()
    until(lambda: not orphan.is_running(), "the orphan to be reaped", 30)
    container.main.send_signal(signal.SIGTERM)
    assert container.running.end() == (0, "", "")


def test_too_little_shared_memory_is_told_at_the_start(tmp_path: Path, containers: list[Container]) -> None:
    containers.append(container := Container(tmp_path, "mount -t tmpfs -o size=2m tmpfs /dev/shm"))
    status, _, err = container.running.end()
    assert status == ExitStatus.NO_SPACE
    assert "shared memory" in err
    assert "Traceback" not in err
