"""What one message costs, stage by stage: `python -m tests.bench.stages` prints the table of tests/bench/README.md.

The sender and the receiver of a tell run as always, each in its worker, over all of the runtime. In their processes the
methods of `PLACES`, which deal with many messages in one call, are timed: processor time, each method's own. What one
call does for one message cannot be timed where it stands: making a message, `send` and the handler's own method are
timed in loops of many, in the same processes. What is left of a worker's processor time is `the rest`.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors import Handler, Topology, handle
from actors.process import stop_forkserver
from tests.bench.handlers import CALL, LOOK, Begin, Tick, leave
from tests.bench.measure import Case, Figure, Scale, Series
from tests.bench.probe import Place, Probe
from tests.bench.running import collect, left_in, one_of, place_for, running

COUNT = 300_000  # messages

PLACES = (
    Place("group", "actors.codec", "RunCodec", "encode_run"),
    Place("group", "actors.codec", "RunCodec", "check_run"),
    Place("group", "actors.outgoing", "Outgoing", "encode"),
    Place("free", "actors.outgoing", "Outgoing", "clear"),
    Place("on_loop", "actors.dispatch", "Dispatcher", "run_source"),
    Place("append", "persist.journal", "Journal", "append"),
    Place("sync", "persist.journal", "Journal", "sync"),
    Place("commit", "actors.endpoint", "Endpoint", "commit"),
    Place("publish", "actors.endpoint", "Endpoint", "publish"),
    Place("progress", "actors.endpoint", "Endpoint", "progress"),
    Place("take", "actors.endpoint", "Endpoint", "take"),
    Place("decode", "actors.unpacking", "PlainInlet", "decode_run"),
    Place("loop", "actors.dispatch", "Dispatcher", "run"),
    Place("release", "actors.endpoint", "Endpoint", "release"),
)
# Stage -> what it is. Those of `PLACES`, those timed in loops, and the rest.
SENDER = {
    "make": "the message is made",
    "send": "`send` finds its lane, checks it and encodes it",
    "on_loop": "the rest of `on_loop` and its loop",
    "group": "runs are put together, of what `send` has left as it is too",
    "append": "journal: frame, checksum, `write`",
    "commit": "numbers, outbox, cells",
    "publish": "to the ring, and the doorbell",
    "free": "the messages are freed",
    "progress": "acknowledgements, and the outbox is trimmed",
}
RECEIVER = {
    "take": "from the ring",
    "decode": "runs are looked at, whether all of them is plain",
    "call": "the handler's method",
    "loop": "the loop over messages, which makes each, and their admission",
    "append": "journal: frame, checksum, `write`",
    "commit": "watermarks, cells",
    "publish": "looks for what waits",
    "release": "room in the ring",
    "progress": "acknowledgements",
}
REST = "rest"


def _cost(work: Callable[[Any], object], things: Sequence[object], repeat: int = 20) -> float:
    """Nanoseconds of one call, without the loop: the least that was seen."""
    times = []
    for _ in range(repeat):
        began = time.thread_time_ns()
        for thing in things:
            work(thing)
        called = time.thread_time_ns()
        for _ in things:
            pass
        times.append(2 * called - began - time.thread_time_ns())
    return min(times) / len(things)


class StageSource(Handler):
    """Sends `count` messages and leaves what each stage of that took."""

    def __init__(self, count: int, path: Path) -> None:
        self.count = count
        self.path = path
        self.sent = self.making = self.sending = self.freeing = self.began = 0
        self.probe = Probe()

    def on_start(self) -> None:
        self.probe.install(PLACES)

    @handle
    def on_begin(self, begin: Begin) -> None:
        self.probe.reset()
        self.began = time.process_time_ns()

    def on_loop(self) -> float | None:
        if self.sent >= self.count:
            return math.inf
        if not self.began:
            return LOOK
        send, clock = self.send, time.thread_time_ns
        began = clock()
        ticks = [Tick("RNGL", 101.25, number) for number in range(self.sent, self.sent + CALL)]
        made = clock()
        for tick in ticks:
            send(tick)
        sent = clock()
        ticks.clear()
        self.freeing += clock() - sent
        self.sending += sent - made
        self.making += made - began
        self.sent += CALL
        return None

    def on_stop(self) -> None:
        whole = time.process_time_ns() - self.began
        spent = self.probe.spent
        spent["on_loop"] -= self.making + self.sending + self.freeing
        spent["free"] += self.freeing
        spent["make"], spent["send"] = self.making, self.sending
        leave(self.path, {"whole": whole, "transactions": self.probe.calls["commit"], **spent})


class StageSink(Handler):
    """Counts messages and leaves what each stage of that took."""

    def __init__(self, count: int, path: Path, complete: Path) -> None:
        self.count = count
        self.path = path
        self.complete = complete
        self.seen = self.began = self.last = 0
        self.probe = Probe()

    def on_start(self) -> None:
        self.probe.install(PLACES)

    @handle
    def on_tick(self, tick: Tick) -> None:
        self.seen += 1
        self.last = tick.size
        if self.seen == 1:
            self.probe.reset()
            self.began = time.process_time_ns()
        elif self.seen == self.count:
            leave(self.complete, {"seen": self.seen})

    def on_stop(self) -> None:
        whole, seen = time.process_time_ns() - self.began, self.seen
        spent = self.probe.spent
        call = _cost(self.on_tick, [Tick("RNGL", 101.25, number) for number in range(1000)]) * seen
        spent["call"] = round(call)
        spent["loop"] -= round(call)
        leave(self.path, {"whole": whole, "seen": seen, **spent})


def stages(level: str, scale: Scale) -> Series:
    """Nanoseconds of each stage for one message: `sender: STAGE` and `receiver: STAGE`."""
    count = -(-scale.count(COUNT, 2_000) // CALL) * CALL
    with place_for(scale) as place:
        sent, handled, complete = place / "sent", place / "handled", place / "complete"
        app = Topology("bench-stages", directory=place / "run", durability=level)
        app.worker("left", source=StageSource.spec(count, sent))
        app.worker("right", sink=StageSink.spec(count, handled, complete))
        app.route("source", Tick, to="sink")
        app.external("source", Begin)
        with running(app) as system:
            system.send("source", Begin())
            collect(complete, system, scale)
        sender, receiver = left_in(sent), left_in(handled)  # by their `on_stop`
    if receiver["seen"] != count:
        raise AssertionError(f"{receiver['seen']} of {count} messages came")
    found: dict[str, list[float]] = {}
    for side, names, left in (("sender", SENDER, sender), ("receiver", RECEIVER, receiver)):
        costs = {name: one_of(left.get(name, 0.0)) / count for name in names}
        whole = one_of(left["whole"]) / count
        costs |= {REST: whole - sum(costs.values()), "together": whole}
        found |= {f"{side}: {name}": [cost] for name, cost in costs.items()}
    found["transaction"] = [count / max(1.0, one_of(sender["transactions"]))]
    return found


def figures() -> tuple[Figure, ...]:
    named = [f"{side}: {name}" for side, names in (("sender", SENDER), ("receiver", RECEIVER)) for name in names]
    whole = [f"{side}: {name}" for side in ("sender", "receiver") for name in (REST, "together")]
    return (
        *(Figure(name, name, "ns") for name in named + whole),
        Figure("messages of a transaction", "transaction", "msg"),
    )


def cases() -> list[Case]:
    return [Case("cost by stage", "process", functools.partial(stages, "process"), figures(), ours=True)]


def table(runs: Sequence[Series]) -> str:
    """As Markdown, the two sides side by side: medians over the runs."""

    def lines(side: str, names: dict[str, str]) -> list[tuple[str, str]]:
        rows = [(f"**{name}**: {text}", f"{side}: {name}") for name, text in names.items()]
        rows += [("the rest: the loop, the clock, sleeping and waking", f"{side}: {REST}")]
        return [(text, f"{statistics.median(run[key][0] for run in runs):.0f}") for text, key in rows]

    left, right = lines("sender", SENDER), lines("receiver", RECEIVER)
    right += [("", "")] * (len(left) - len(right))
    shown = ["| sender | ns | receiver | ns |", "|---|---|---|---|"]
    shown += [f"| {a} | {b} | {c} | {d} |" for (a, b), (c, d) in zip(left, right, strict=True)]
    ends = [f"{statistics.median(run[f'{side}: together'][0] for run in runs):.0f}" for side in ("sender", "receiver")]
    return "\n".join([*shown, f"| together | {ends[0]} | together | {ends[1]} |"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.stages", description="Nanoseconds by stage.")
    parser.add_argument("--level", choices=("memory", "process", "power"), default="process")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the usual count")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ringleader-bench-") as directory:
        scale = Scale(Path(directory), options.fraction)
        try:
            runs = [stages(options.level, scale) for _ in range(options.runs)]
        finally:
            stop_forkserver()
    size = statistics.median(run["transaction"][0] for run in runs)
    print(f"{options.level}, medians of {options.runs} runs; about {size:.0f} messages a transaction\n")
    print(table(runs))
    return 0


if __name__ == "__main__":
    # By its name: the handlers of `__main__` are not those that workers import.
    from tests.bench.stages import main as run

    sys.exit(run())
