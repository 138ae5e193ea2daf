"""`python -m tests.side_by_side [options of pytest]`: all tests, in two halves at once.

Most tests wait for processes more than they compute. Every test looks whether it has left a segment behind in /dev/shm,
so each half gets one of its own. Where the system does not allow that (it takes a mount namespace), the halves run one
after the other. The status is the worse one of both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
FIRST = ["tests/actors", "tests/bus"]
HALVES = (FIRST, ["tests", *(f"--ignore={folder}" for folder in FIRST)])
OWN_SHM = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    *('mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"', "sh"),
)


def main(options: list[str]) -> int:
    if not _may_have_own_shm():
        print("no mount namespaces here: one half after the other", flush=True)
        return worst(subprocess.run(_command(half, options), cwd=ROOT, check=False).returncode for half in HALVES)
    first, second = HALVES
    with tempfile.TemporaryFile() as kept:
        other = _start(second, options, kept)
        status = worst([_start(first, options, None).wait(), other.wait()])
        kept.seek(0)
        sys.stdout.write(kept.read().decode("utf-8", "replace"))
    return status


def worst(codes: Iterable[int]) -> int:
    """Of pytest's statuses; one that was killed (minus the signal) is worse than any."""
    return max(code if code >= 0 else 128 - code for code in codes)


def _command(half: list[str], options: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", *half, *options]


def _start(half: list[str], options: list[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*OWN_SHM, *_command(half, options)], cwd=ROOT, stdout=output, stderr=output)


def _may_have_own_shm() -> bool:
    try:
        return subprocess.run([*OWN_SHM, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
