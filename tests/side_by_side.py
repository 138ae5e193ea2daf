"""`python -m tests.side_by_side [options of pytest]`: all tests, in parts, two of them at any time.

Most tests wait for processes more than they compute. Every test looks whether it has left a segment behind in /dev/shm,
so each part gets one of its own. Where the system does not allow that (it takes a mount namespace), one part runs after
the other. The status is the worst one; a part of which the options leave nothing is none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARES = 9  # so many that both end at about the same time, so few that starting pytest costs little
OWN_SHM = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    *('mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"', "sh"),
)


def parts() -> list[list[str]]:
    """What takes longest comes first, and alone; all other files are dealt out like cards."""
    files = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/**/test_*.py"))
    torture = [file for file in files if file.startswith("tests/torture/")]
    others = [file for file in files if file not in torture]
    return [torture, *(others[share::SHARES] for share in range(SHARES))]


def main(options: list[str]) -> int:
    beginning = own_shm()
    if not beginning:
        print("no mount namespaces here: one part after the other", flush=True)
    statuses = []
    with ThreadPoolExecutor(2 if beginning else 1) as pool:
        running = [pool.submit(_run, beginning, part, options) for part in parts()]
        try:
            for one in as_completed(running):
                status, output = one.result()
                sys.stdout.buffer.write(output)
                sys.stdout.flush()
                statuses.append(status)
        except KeyboardInterrupt:  # whatever runs has heard of it, too
            pool.shutdown(cancel_futures=True)
            return pytest.ExitCode.INTERRUPTED
    return worst(statuses)


def worst(statuses: Sequence[int]) -> int:
    none = pytest.ExitCode.NO_TESTS_COLLECTED
    return max((status for status in statuses if status != none), default=none)


def _run(beginning: tuple[str, ...], files: list[str], options: list[str]) -> tuple[int, bytes]:
    command = [*beginning, sys.executable, "-m", "pytest", *files, *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return abs(done.returncode), done.stdout


def own_shm() -> tuple[str, ...]:
    """What a command is to begin with that shall see no segments but its own; empty where that is not allowed."""
    try:
        allowed = subprocess.run([*OWN_SHM, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return OWN_SHM if allowed else ()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
