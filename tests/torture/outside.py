"""The program around the system: it sends, and remembers outside of the runtime what it sent and what was accepted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from actors import System, SystemClosed
from tests.torture.topology import Outside

PAUSE = 0.002


class Sent:
    """Numbers that were sent: each is asked for, and accepted once its send has returned."""

    def __init__(self, folder: Path, what: str = "outside") -> None:
        self._next, _ = remembered(folder, what)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._asked, self._accepted = (os.open(folder / f"{what}-{end}", flags) for end in ("asked", "accepted"))

    def send(self, send: Callable[[int], object]) -> None:
        """The next number, behind the last one that was ever tried."""
        self._next += 1
        line = b"%d\n" % self._next
        os.write(self._asked, line)
        send(self._next)
        os.write(self._accepted, line)

    def close(self) -> None:
        os.close(self._asked)
        os.close(self._accepted)


class Feeder:
    """Sends numbers, until it is stopped or killed."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._stop = threading.Event()
        self._sent = Sent(folder)
        self._thread = threading.Thread(target=self._run, name="feeder")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            try:
                self._sent.send(lambda n: self._system.send("sink", Outside(n), timeout=60))
            except SystemClosed:
                return

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sent.close()


def remembered(folder: Path, what: str = "outside") -> tuple[int, set[int]]:
    """The last number that was tried, and those that were accepted."""
    asked, accepted = folder / f"{what}-asked", folder / f"{what}-accepted"
    last = int(asked.read_text().split()[-1]) if asked.exists() and asked.read_text() else 0
    return last, {int(line) for line in accepted.read_text().split()} if accepted.exists() else set()
