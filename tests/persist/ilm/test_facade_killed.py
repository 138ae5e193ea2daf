"""Two peers over a Unix socket, with journals; now one, now the other is killed. Nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).parents[3]
KILLS = 12
COUNT = 8000


class Peer:
    def __init__(self, name: str, other: str, place: Path) -> None:
        self.arguments = [name, other, str(place), str(COUNT)]
        self.output = place / f"{name}.out"
        self.errors = place / f"{name}.err"
        self.start()

    def start(self) -> None:
        with self.output.open("wb") as output, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.persist.ilm.child", *self.arguments],
                cwd=ROOT,
                stdout=output,
                stderr=errors,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def is_done(self) -> bool:
        assert self.process.poll() is None, self.errors.read_text()
        return self.output.read_bytes() == b"done\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_peers_that_are_killed_lose_nothing_and_double_nothing(seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as place:  # a short path: it has to fit the address of a socket
        os.chmod(place, 0o700)
        peers = [Peer("a", "b", Path(place)), Peer("b", "a", Path(place))]
        try:
            for _ in range(KILLS):
                time.sleep(random.uniform(0.15, 0.4))  # when to kill, not what to wait for
                victim = random.choice(peers)
                assert victim.process.poll() is None, victim.errors.read_text()
                victim.kill()
                victim.start()
            deadline = time.monotonic() + 60
            while not all(peer.is_done for peer in peers):
                assert time.monotonic() < deadline, [peer.errors.read_text() for peer in peers]
                time.sleep(0.02)
        finally:
            for peer in peers:
                peer.kill()
        assert [peer.errors.read_text() for peer in peers] == ["", ""]
