"""A real system for the tests of what is done to it from outside: `ringleader run` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from actors.status import read_status
from actors.status_types import SystemStatus
from persist import read

from .waiting import DEADLINE, until

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "actors", "run"]
SCRIPT = """
    from actors import Handler, Message, State, Topology, handle

    class Tick(Message):
        n: int

    class Count(State):
        n: int = 0

    class Source(Handler):
        state: Count

        def on_loop(self) -> float | None:
            self.state.n += 1
            self.send(Tick(self.state.n))
            return 0.001

    class Sink(Handler):
        state: Count

        @handle
        def on_tick(self, tick: Tick) -> None:
            assert tick.n == self.state.n + 1, (tick.n, self.state.n)
            self.state.n += 1

    app = Topology("live", drain_timeout=DRAIN_TIMEOUT, max_restarts=3)
    app.worker("ingest", source=Source)
    app.worker("stats", sink=Sink)
    app.route("source", Tick, to="sink")
"""


class Running:
    """Numbers flow from `ingest` to `stats`, which stops at once when one is missing, doubled or out of order."""

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str] = RUN,
        environment: Mapping[str, str] | None = None,
        drain_timeout: float = 30.0,
        up: bool = True,
        **options: object,
    ) -> None:
        self.home = folder / "home"
        self.path = self.home / "live"
        self.file = folder / "live.py"
        self.file.write_text(textwrap.dedent(SCRIPT).replace("DRAIN_TIMEOUT", repr(drain_timeout)))
        pipes: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            [*command, str(self.file), "--home", str(self.home)],
            env={**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)},
            **{**pipes, **options},
        )
        if up:
            self.until(lambda status: status.running and status.state == "running", "the system to be up")

    def status(self) -> SystemStatus:
        return read_status(self.path)

    def until(self, condition: Callable[[SystemStatus], object], what: str, seconds: float = DEADLINE) -> SystemStatus:
        found: list[SystemStatus] = []

        def holds() -> object:
            assert self.process.poll() is None, self.process.communicate()
            found[:] = [self.status()]
            return condition(found[0])

        until(holds, what, seconds)
        return found[0]

    def handled(self) -> int:
        """What the sink has counted, as its journal has it."""
        try:
            state = read(self.path / "journals" / "stats").states.get("sink")
        except FileNotFoundError:
            return 0  # not even that far
        return msgspec.msgpack.decode(state)["n"] if state else 0

    def flows(self) -> None:
        """Wait until more was handled than now."""
        now = self.handled()
        until(lambda: self.handled() > now, "a message to be handled")

    def end(self, timeout: float = 60.0) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out or "", err or ""

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
