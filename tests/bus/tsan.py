"""`python -m tests.bus.tsan`: the core of the C ring and of the doorbell under the thread sanitizer.

Two threads of one small program (`tsan_ring.c`) for the two processes, since Python itself is not built for it. The
sources may have mistakes in them, which it must find.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.bus.variants import Edit, copy_sources

PROGRAM = Path(__file__).parent / "tsan_ring.c"
RECORDS = 1_000_000
RACE = 66  # exit status of what the sanitizer has ended


def compiler() -> list[str]:
    return os.environ.get("CC", "gcc").split()


def build(place: Path, edits: Iterable[Edit] = ()) -> Path:
    """The program, from sources with these mistakes; `place` is made."""
    place.mkdir()
    copy_sources(place, edits)
    # The sanitizer does not follow fences: they order stores before loads here, and no plain access relies on them.
    flags = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-tsan", "-fsanitize=thread", "-pthread"]
    command = [*compiler(), *flags, f"-I{place}", str(PROGRAM), "-o", str(place / "ring")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return place / "ring"


def run(program: Path, records: int) -> subprocess.CompletedProcess[str]:
    options = {"TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE}"}
    return subprocess.run(
        [str(program), str(records)], env=os.environ | options, capture_output=True, text=True, check=False
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ringleader-tsan-") as directory:
        done = run(build(Path(directory) / "tsan"), int(sys.argv[1]) if sys.argv[1:] else RECORDS)
    print(done.stdout, done.stderr, sep="", end="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
