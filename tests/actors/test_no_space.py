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


def run(folder: Path, mounts: dict[Path, str]) -> subprocess.CompletedProcess[str]:
    """The script in a mount namespace where these directories are file systems of these sizes."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    mount = " && ".join(f"mount -t tmpfs -o size={size},mode=700 tmpfs {path}" for path, size in mounts.items())
    command = f"{mount} && exec {sys.executable} {script} {folder}/disk/run"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
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
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr
