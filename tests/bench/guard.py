"""Runs one server, and ends it when whoever asked for it says so or is gone, however it went.

    python -m tests.bench.guard DIRECTORY COMMAND...

The server runs in the directory, its output goes to `log` there; both are gone when this process is. Standard input is
the asker's only word: its end means the end, and the kernel says it for an asker that was killed.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

LOG = "log"
PATIENCE = 5.0  # seconds; a server that takes longer to end is killed


def main(directory: Path, command: list[str]) -> None:
    try:
        with (directory / LOG).open("wb") as log:
            server = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # not before: the server would ignore them, too
            signal.signal(number, signal.SIG_IGN)
        try:
            sys.stdin.buffer.read()
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(PATIENCE)
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
