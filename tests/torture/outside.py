"""The program around the system: it sends, and remembers outside of the runtime what it sent and what was accepted."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from actors import System, SystemClosed
from tests.torture.topology import Outside

PAUSE = 0.002


class Feeder:
    """Sends numbers, from the one behind the last that was ever tried, until it is stopped or killed."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._stop = threading.Event()
        self._next, _ = remembered(folder)
        self._files = [os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("asked", "accepted")]
        self._thread = threading.Thread(target=self._run, name="feeder")
        self._thread.start()

    def _run(self) -> None:
        asked, accepted = self._files
        while not self._stop.wait(PAUSE):
            self._next += 1
            line = b"%d\n" % self._next
            os.write(asked, line)
            try:
                self._system.send("sink", Outside(self._next), timeout=60)
            except SystemClosed:
                return
            os.write(accepted, line)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for file in self._files:
            os.close(file)
        self._files.clear()


def remembered(folder: Path) -> tuple[int, set[int]]:
    """The last number that was tried, and those that were accepted."""
    asked, accepted = folder / "asked", folder / "accepted"
    last = int(asked.read_text().split()[-1]) if asked.exists() and asked.read_text() else 0
    return last, {int(line) for line in accepted.read_text().split()} if accepted.exists() else set()
