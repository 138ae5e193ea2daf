"""A worker in the process of a test, of which the test is all peers and the clock, and all that can be seen of it.

The same script, played to two of them, tells whether both do the same: `Twin.play` returns what was seen after each
step, and what was to be seen whenever a handler was called, something was put into a ring or taken out of it, and a
doorbell was rung.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from actors import (
    Handler,
    Message,
    State,
    Topology,
    careful,
    claims_in_memory,
    dispatch,
    endpoint,
    handle,
    housekeeping,
    polling,
    wiring,
)
from actors import worker as workers
from actors.codec import FLAG_ASK, RunCodec, pack_header, unpack_header
from actors.endpoint import Endpoint
from actors.hosted import Hosted
from actors.identity import segment_prefix
from actors.outgoing import Outgoing
from actors.plan import GATEWAY, Plan
from actors.wiring import Wires
from actors.worker import Boot, Worker
from bus import (
    Board,
    Cell,
    Control,
    Field,
    Pause,
    PyProgress,
    PyRing,
    board_size,
    format_ring,
    pause_cell,
    progress,
    ring_size,
)
from bus.layout import DOORBELL_AT, HEADER_SIZE, WORD, block_at
from persist import Journal

RING_BYTES = 4096
LARGE = "l" * 1500  # of these, two fill a ring; twice as much is in no ring, but in a claim
STARTS = 4  # incarnations of a worker whose rings hold what no incarnation can read
SESSION = "51e5510a"
RUN = f"{os.getpid():08x}"


# ---------------------------------------------------------------------------------------------------- what is tortured
class Do(Message):
    """What its handler does: a letter for each thing."""

    n: int
    acts: str


class Count(Message):
    n: int
    acts: str


class Pair(Message):
    n: int
    acts: str


class Many(Message):
    n: int
    acts: str


class Timed(Message):
    n: int
    acts: str


class Here(Message):
    n: int
    acts: str


class ToP(Message):
    n: int
    text: str = ""


class ToR(Message):
    n: int


class ToBoth(Message):
    n: int


class Odd(Message):
    n: int
    more: list[int]


class Answer(Message):
    n: int


class Total(State):
    n: int = 0
    last: int = 0


class Acting(Handler):
    """Tells the twin what it does."""

    def act(self, message: Any) -> None:
        twin = _at_work[-1]
        twin.called(self, message)
        for letter in message.acts:
            match letter:
                case "p":
                    self.send(ToP(message.n))
                case "P":
                    self.send(ToP(message.n, LARGE))
                case "c":
                    self.send(ToP(message.n, 2 * LARGE))
                case "r":
                    self.send(ToR(message.n))
                case "b":
                    self.send(ToBoth(message.n))
                case "o":
                    self.send(Odd(message.n, [message.n]))
                case "h":
                    self.send(Here(message.n, ""))
                case "H":
                    self.send(Here(message.n, "pr"))
                case "u":
                    self.send(ToP("not a number"))  # type: ignore[arg-type]
                case "a":
                    self.reply(Answer(message.n))
                case "s":
                    self.stop_system()
                case "e":
                    self.stop_worker()
                case "t":
                    twin.clock.ns += 2 * dispatch.BATCH_NS
                case "x" if (type(message), message.n) not in twin.failed:
                    twin.failed.add((type(message), message.n))
                    raise ValueError("once")
                case "y":
                    raise ValueError("always")


class Plain(Acting):
    @handle
    def on_do(self, message: Do) -> None:
        self.act(message)

    @handle
    def on_pair(self, message: Pair) -> None:
        self.act(message)

    @handle(batch=True)
    def on_many(self, messages: list[Many]) -> None:
        for message in messages:
            self.act(message)


class Stateful(Acting):
    state: Total

    @handle
    def on_count(self, message: Count | Pair) -> None:
        self.state.n += 1
        self.state.last = message.n
        self.act(message)


class Slow(Acting, busy_limit=10.0):
    @handle
    def on_timed(self, message: Timed) -> None:
        self.act(message)


class Local(Acting):
    @handle
    def on_here(self, message: Here) -> None:
        self.act(message)


class Feed(Handler):
    """Of a peer; never made."""

    def on_start(self) -> None: ...


class Sink(Handler):
    @handle
    def on_any(self, message: ToP | ToBoth | Odd) -> None: ...


class Drain(Handler):
    @handle
    def on_any(self, message: ToR | ToBoth) -> None: ...


KINDS = {"do": Do, "count": Count, "pair": Pair, "many": Many, "timed": Timed}
PEERS = ("p", "q", GATEWAY)
_SENDERS = {"p": "feed", "q": "drip", GATEWAY: GATEWAY}


@cache
def plan(level: str) -> Plan:
    """`p` is in a cycle with the worker, `q` only sends to it, and `r` only gets something from it."""
    app = Topology("twins", directory="/nowhere", durability=level, ring_bytes=RING_BYTES, outbox_limit_bytes=6000)
    app.worker("p", feed=Feed, sink=Sink)
    app.worker("q", drip=Feed)
    app.worker("r", drain=Drain)
    app.worker("w", plain=Plain, stateful=Stateful, slow=Slow, local=Local)
    for source in ("feed", "drip"):
        app.route(source, (Do, Many), to="plain")
        app.route(source, Count, to="stateful")
        app.route(source, Timed, to="slow")
        app.route(source, Pair, to=("plain", "stateful"))
    for source in ("plain", "stateful", "slow", "local"):
        app.route(source, (ToP, Odd), to="sink")
        app.route(source, ToR, to="drain")
        app.route(source, ToBoth, to=("sink", "drain"))
        app.route(source, Here, to="local")
    app.external("plain", Do)
    app.external("stateful", Count)
    return app.compile()


# ---------------------------------------------------------------------------------------------------- the script
class Record(NamedTuple):
    """A run that comes from a peer. `shift`: its numbers are so many too high."""

    peer: str
    kind: str
    acts: tuple[str, ...]
    shift: int = 0
    damage: str = ""  # "body", "short", "count", "route"
    ask: bool = False


class Come(NamedTuple):
    """All of it at once."""

    records: tuple[Record, ...]


class Take(NamedTuple):
    """A peer takes so many records out of its ring, and acknowledges them."""

    peer: str
    records: int
    acknowledged: bool = True


class Ask(NamedTuple):
    """A peer asks for what it has not acknowledged once more."""

    peer: str


class Arm(NamedTuple):
    """A peer sleeps on its doorbell, maybe because it waits for room."""

    peer: str
    starved: bool


class Later(NamedTuple):
    ns: int


class Paused(NamedTuple):
    how: Pause


class Over(NamedTuple):
    """A worker of the component has more waiting than it may, or not any more."""

    limit: bool


Step = Come | Take | Ask | Arm | Later | Paused | Over


# ---------------------------------------------------------------------------------------------------- what is seen
class Seen(NamedTuple):
    """After a step: by everybody, in the worker, and what it has on disk. `asleep`: it is not about to look again."""

    asleep: bool
    shared: dict[str, object]
    inside: dict[str, object]
    journal: dict[str, bytes]


class Event(NamedTuple):
    what: tuple[object, ...]
    shared: dict[str, object]


class Report(NamedTuple):
    seen: list[Seen]
    events: list[Event]


class Clock:
    """The time, as far as the worker reads it in Python: it stands still during a step."""

    def __init__(self, begin: int = 0) -> None:
        self.ns = begin or time.monotonic_ns() + 10**14  # a day ahead: never earlier than what C reads
        module = SimpleNamespace(**vars(time))
        module.monotonic_ns = module.time_ns = lambda: self.ns
        module.monotonic = module.time = lambda: self.ns / 1e9
        self.module = module


class Bell:
    """A doorbell that tells. The worker's own takes the next step instead of sleeping."""

    def __init__(self, real: Any, ring: Callable[[], object], wait: Callable[[], object]) -> None:
        self._real, self._ring, self._wait = real, ring, wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def ring(self) -> bool:
        self._ring()
        done: bool = self._real.ring()
        return done

    def wait(self, timeout: float) -> bool:
        self._wait()
        return True


class Watched(PyRing):
    """A ring whose every change is an event."""

    tell: Callable[..., object] = staticmethod(lambda *what: None)
    name = ""

    def push(self, *parts: Any) -> bool:
        done = super().push(*parts)
        if done:
            self.tell("pushed", self.name, unpack_header(b"".join(map(bytes, parts))))
        return done

    def set(self, cell: int, value: int, /) -> None:
        before = self.get(cell)
        super().set(cell, value)
        if before != value:
            self.tell("set", self.name, cell, value)

    def release(self) -> None:
        super().release()
        self.tell("released", self.name)


class Spins:
    """In place of a worker's Spinning."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def waited(self, seconds: float, rung: bool, messages: int) -> None:
        assert messages >= 0


_at_work: list[Twin] = []


class Twin:
    """`polls`: the worker polls its rings before it sleeps. `c`: the rings are those in C."""

    def __init__(
        self,
        folder: Path,
        level: str,
        patch: pytest.MonkeyPatch,
        clock: Clock,
        *,
        polls: bool,
        ring: type[Any] = PyRing,
    ) -> None:
        self.plan, self.clock, self.failed = plan(level), clock, set[tuple[type, int]]()
        self._folder, self._patch, self._polls, self._ring_type = folder, patch, polls, ring
        self._board_buffer = bytearray(board_size(self.plan.peers))
        self.board = Board.format(self._board_buffer, self.plan.peers)
        self._buffers = {(edge.source, edge.target): bytearray(ring_size(edge.ring_bytes)) for edge in self.plan.edges}
        for buffer in self._buffers.values():
            format_ring(buffer, RING_BYTES, 1)
        self._ends = {ends: PyRing(buffer) for ends, buffer in self._buffers.items()}  # the peers'
        self._next = dict.fromkeys(PEERS, 1)
        self._unacknowledged = {"p": 0, "r": 0, GATEWAY: 0}  # the last one that a peer has taken
        self._serial = 0
        self._events: list[Event] = []
        self._seen: list[Seen] = []
        self._steps: list[Step] = []
        self.worker: Worker | None = None
        self.block = self.board.block("w")
        self._bell = self.block.doorbell
        self._codecs = {kind: RunCodec(type_) for kind, type_ in KINDS.items()}

    # ------------------------------------------------------------------------------------------------ playing
    def play(self, steps: list[Step]) -> Report:
        """All of them, by as many incarnations as it takes; then it stops."""
        self._steps = list(steps)
        patch = self._patch
        for module in (dispatch, endpoint, careful, polling, housekeeping, workers, progress, claims_in_memory):
            patch.setattr(module, "time", self.clock.module)
        patch.setattr(wiring, "attach_ring", lambda run, edge, wires: self._ring(edge.source, edge.target))
        patch.setattr(Hosted, "__hash__", lambda self: self.index, raising=False)  # sets of them have an order
        patch.setattr(workers, "Spinning", lambda possible: Spins(1e-9 if self._polls else 0.0))
        patch.setattr(workers, "Journal", SimpleNamespace(open=partial(Journal.open, clock=lambda: self.clock.ns)))
        if self._ring_type is PyRing:
            patch.setattr(workers, "Progress", PyProgress)
            patch.setattr(workers, "Outgoing", partial(Outgoing, packs=False))
        self.block.set(Field.GATE, 1)
        _at_work.append(self)
        try:
            for epoch in range(STARTS):
                if self._live(epoch):
                    break
        finally:
            _at_work.pop()
            for left in Path("/dev/shm").glob(f"{segment_prefix(RUN)}*"):
                left.unlink()
            self.block.doorbell = self._bell
        return Report(self._seen, self._events)

    def _live(self, epoch: int) -> bool:
        """One incarnation. True if it was the last one."""
        self.block.doorbell = Bell(self._bell, lambda: self._tell("rang", "w"), self._slept)  # type: ignore[assignment]
        worker = self.worker = None
        ended = "stopped"
        try:
            boot = Boot(self.plan, "w", RUN, str(self._folder / "w"), SESSION, epoch, None, {})
            worker = self.worker = Worker(boot, self.board, self.block, Wires())
            inside = worker._endpoint
            for link in inside.links:
                if link.bell is not None:
                    link.bell = Bell(link.bell, partial(self._tell, "rang", link.name), list)  # type: ignore[assignment]
            waiting = inside._waiting
            inside._waiting = lambda seconds=0.0: waiting() or (self._polled() and waiting() if seconds else [])
            worker.run()
        except Exception as error:
            ended = f"{type(error).__name__}: {error}"
        if worker is not None:
            if worker._endpoint.journal is not None:
                worker._endpoint.journal.close()
            self._tell("ended", ended)
            self._look(asleep=True)
        else:
            self._tell("not even begun", ended)
        return self.block.get(Field.CONTROL) == Control.STOP

    def _slept(self) -> None:
        self._look(asleep=True)
        if self._steps:
            self._do(self._steps.pop(0))
        else:
            self.block.set(Field.CONTROL, Control.STOP)

    def _polled(self) -> Any:
        """What comes while the worker polls are messages; for everything else it has to sleep first, and so it has to
        ask for room for claims."""
        assert self.worker is not None
        if not (self._steps and isinstance(self._steps[0], Come)) or self.worker._endpoint.claims.held:
            return []
        self._look(asleep=False)
        self._do(self._steps.pop(0))
        return True

    def _ring(self, source: str, target: str) -> Any:
        ring = self._ring_type(self._buffers[source, target])
        if self._ring_type is not PyRing:
            return ring
        watched = Watched(self._buffers[source, target])
        watched.name, watched.tell = f"{source}>{target}", self._tell
        return watched

    def _do(self, step: Step) -> None:
        match step:
            case Come(together):
                for record in together:
                    self._come(record)
            case Take(peer, records, acknowledged):
                ring = self._ends["w", peer]
                for taken in ring.take_many(records, RING_BYTES):
                    first, length, _, _ = unpack_header(taken)
                    self._unacknowledged[peer] = max(self._unacknowledged[peer], first + length - 1)
                ring.release()
                if acknowledged:
                    ring.set(Cell.ACK, self._unacknowledged[peer])
            case Ask(peer):
                ring = self._ends["w", peer]
                ring.set(Cell.RESUME, ring.get(Cell.ACK))
                ring.set(Cell.RESEND_ASKED, ring.get(Cell.RESEND_ASKED) + 1)
            case Arm(peer, starved):
                self.board.block(peer).doorbell.arm()
                if starved and (peer, "w") in self._ends:
                    self._ends[peer, "w"].set(Cell.STARVED, 1)
            case Later(ns):
                self.clock.ns += ns
            case Paused(how):
                self._serial += 1
                self.block.set(Field.PAUSE, pause_cell(self._serial, how))
            case Over(limit):
                self.board.block("p").set(Field.OVER_LIMIT, limit)

    def _come(self, record: Record) -> None:
        peer, count = record.peer, len(record.acts)
        routes = [
            one.id
            for one in self.plan.routes
            if one.message is KINDS[record.kind] and one.source == _SENDERS[peer] and "w" in self.plan.target_peers(one)
        ]
        if not routes:
            return  # the gateway sends two kinds only
        (route,) = routes
        first = max(1, self._next[peer] + record.shift)
        messages = [KINDS[record.kind](first + at, acts) for at, acts in enumerate(record.acts)]
        body = self._codecs[record.kind].encode_run(messages)
        match record.damage:
            case "body":
                body = body[:-1] + b"\xc1"
            case "count":
                count += 1
            case "route":
                route = 999
        header = pack_header(first, count, route, FLAG_ASK if record.ask and peer == GATEWAY else 0)
        whole = header + body if record.damage != "short" else header[:9]
        # What may not be all of the next in order uses no numbers.
        if self._ends[peer, "w"].push(whole) and not record.shift and record.damage != "short":
            self._next[peer] += count

    # ------------------------------------------------------------------------------------------------ looking
    def called(self, handler: Handler, message: Any) -> None:
        context = self.worker._dispatcher._context if self.worker is not None else None
        assert context is not None
        about = (handler.message_id, context.handler, context.local, context.many, context.flags, context.peer)
        self._tell("called", handler.name, type(message).__name__, message.n, *about)

    def _tell(self, *what: object) -> None:
        self._events.append(Event(what, self._shared(True)))

    def _look(self, *, asleep: bool) -> None:
        worker = self.worker
        assert worker is not None
        journal = {}
        if self.plan.level != "memory":
            files = [path for path in sorted((self._folder / "w").rglob("*")) if path.is_file()]
            journal = {path.name: path.read_bytes() for path in files if path.name != "spare"}
        shared = self._shared(False) | {f"{a}>{b}": bytes(buffer) for (a, b), buffer in self._buffers.items()}
        self._seen.append(Seen(asleep, shared, self._inside(worker._endpoint, worker), journal))

    def _shared(self, meanwhile: bool) -> dict[str, object]:
        """`meanwhile`: without what is told late, and may be, by one who is busy."""
        shared: dict[str, object] = {}
        for peer in self.plan.peers:
            for field, value in enumerate(self.board.block(peer).cells):
                if value and field not in {Field.BUSY_SINCE_NS, Field.HEARTBEAT_NS, Field.JOURNAL_BYTES}:
                    shared[f"{peer}.{_FIELDS.get(field, field)}"] = value
            if peer != "w":
                at = block_at(self.plan.peers.index(peer), len(self.plan.peers)) + DOORBELL_AT
                shared[f"{peer} sleeps"] = any(self._board_buffer[at : at + WORD])
        for (source, target), buffer in self._buffers.items():
            with memoryview(buffer)[:HEADER_SIZE] as raw, raw.cast("Q") as cells:
                for cell, value in enumerate(cells):
                    if value and not (meanwhile and cell in {Cell.OUTBOX_BYTES, Cell.OLDEST_NS}):
                        shared[f"{source}>{target}.{_CELLS.get(cell, cell)}"] = value
        return shared

    def _inside(self, endpoint: Endpoint, worker: Worker) -> dict[str, object]:
        dispatcher = worker._dispatcher
        context, outgoing = dispatcher._context, dispatcher._outgoing
        inside: dict[str, object] = {
            "behind": sorted(link.name for link in endpoint._behind),
            "held": endpoint._held,
            "left": sorted(link.name for link in endpoint._left),
            "taken": sorted(link.name for link in endpoint._taken),
            "changed": endpoint._changed,
            "own until": max(endpoint._own_until, endpoint.me.inbound.watermark),
            "attempts": dict(dispatcher.attempts),
            "blocked": {link.name: due for link, due in dispatcher.blocked.items()},
            "settled": (dispatcher.settled, endpoint.settled),
            "context": (context.flags, context.replied, context.stop, context.end, context.many, context.local),
            "progress": (context.peer, context.seq, context.handler),
            "transaction": (
                dispatcher._handled,
                dispatcher.local.budget,
                dispatcher._removed,
                len(dispatcher._touched),
            ),
            "began": (dispatcher._began, dispatcher._route),
            "outgoing": (bool(outgoing), len(outgoing._open), len(outgoing._used), outgoing.sent),
            "states": {one.name: one.whole() for one in dispatcher.hosted if one.stateful},
            "dead": [(letter.peer, letter.seq, letter.reason) for letter in endpoint.dead],
        }
        for link in endpoint.links:
            out = link.outbound
            inside[link.name] = {
                **{slot: getattr(out, slot) for slot in type(out).__slots__ if slot not in {"_queue", "_marks"}},
                "queue": [(one.first, one.count, one.size, one.position) for one in out._queue],
                "positions": list(out._marks),
                "marks": list(link.marks),
                "inbound": (link.inbound.seen, link.inbound.watermark),
                # Whatever is published is safe, and no other number is looked at.
                "unsafe": link.unsafe if link.unsafe > out.published else 0,
                "resends": (link.resends, link.resends_seen),
                "cursor": None if link.consuming is None else link.consuming.pending(),
            }
        return inside


_FIELDS = {value: name for name, value in vars(Field).items() if isinstance(value, int)}
_CELLS = {value: name for name, value in vars(Cell).items() if isinstance(value, int)}


def differences(expected: Report, got: Report) -> Iterator[str]:
    """What the one saw, and not the other. Who polls does not sleep at each step, and only then is all done."""
    for number, (one, other) in enumerate(zip(expected.events, got.events, strict=False)):
        if one != other:
            yield f"event {number}: {one.what} and {other.what}"
            yield from _differing(one.shared, other.shared)
            return
    if len(expected.events) != len(got.events):
        more = max(expected.events, got.events, key=len)[min(len(expected.events), len(got.events))]
        yield f"{len(expected.events)} and {len(got.events)} events: {more.what}"
    if len(expected.seen) != len(got.seen):
        yield f"{len(expected.seen)} and {len(got.seen)} looks"
    for number, (before, after) in enumerate(zip(expected.seen, got.seen, strict=False)):
        for part in ("shared", "inside", "journal"):
            for text in _differing(getattr(before, part), getattr(after, part)):
                yield f"look {number}, asleep {before.asleep} and {after.asleep}: {text}"


def _differing(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for key in one.keys() | other.keys():
        if one.get(key) != other.get(key):
            if isinstance(one.get(key), dict) and isinstance(other.get(key), dict):
                yield from (f"{key}: {text}" for text in _differing(one[key], other[key]))
            else:
                yield f"{key}: {one.get(key)!r:.300} and {other.get(key)!r:.300}"
