"""A worker in the process of a test, whose messages say what their handlers do, and where in it they fail.

The test is all peers of the worker, its clock and its disk, and takes its loop turn by turn. What a message does is a
script: steps with commas between them, each a letter.

    +        leave a trace in the durable state of the handler; a Table is changed in ways that the id decides
    p r b    send to the peer p, to r, to both of them; P more than half a ring of it, c what goes by a claim
    h d k    send to other handlers of the worker: to `inner`; to `inner` and `rows`; to `heap`, a batch handler. Behind
             a colon is the script of that message, without commas
    a        reply
    e s      ask for the end of the worker, of the system
    x u m w  fail: raise, send what cannot be encoded, send what is too large, leave a state that cannot be read;
    W y      leave one that cannot be encoded, ask for what is not there. All of them until the message is mended
    1 2 !    at the first attempt only: raise, leave a state that cannot be read, die
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import MutableMapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import (
    Handler,
    Message,
    State,
    Table,
    Topology,
    careful,
    claims_in_memory,
    claims_on_disk,
    dispatch,
    endpoint,
    handle,
    housekeeping,
    local_messages,
    sources,
    wiring,
)
from actors import worker as workers
from actors.codec import FLAG_COMMAND, RUN, RunCodec, pack_header, unpack_header
from actors.hosted import Hosted
from actors.identity import segment_prefix
from actors.links import Arrival
from actors.outgoing import Outgoing
from actors.plan import GATEWAY, Plan
from actors.sources import Sources
from actors.wiring import Wires
from actors.worker import Boot, Worker
from bus import Board, Cell, Field, PyProgress, PyRing, board_size, format_ring, progress, ring_size
from persist import Journal, JournalFull, JournalPoisoned, Transaction
from persist import writer as writer_module
from persist.files import Directory, File

from ..bus.implementations import RINGS
from .twins import Clock

RING_BYTES = 4096
LARGE = "l" * 1500  # of these, two fill a ring; twice as much goes by a claim
TOO_LARGE = "t" * 30_000
RESERVE = 1200  # of the journal, for what only consumes
BEGIN = 10**18  # of the clock: later than whatever C reads
TURN_NS = 5_000_000
SETTLED_IN = 600  # turns
FAILING = frozenset("xumwWy")  # at every attempt
ONCE = frozenset("12!")
RUN_ID = f"{os.getpid():08x}"


class Do(Message):
    id: str
    acts: str


class Row(Message):
    id: str
    acts: str


class Pass(Message):
    id: str
    acts: str


class Many(Message):
    id: str
    acts: str


class Both(Message):
    id: str
    acts: str


class Peek(Message):
    id: str
    acts: str


class Here(Message):
    id: str
    acts: str


class There(Message):
    id: str
    acts: str
    more: list[int] = []


class Heap(Message):
    id: str
    acts: str


class Told(Message):
    """`seen`: so many traces the handler had left, the last of them by `last`."""

    id: str
    handler: str
    step: int
    seen: int = 0
    last: str = ""
    text: str = ""


class Other(Message):
    id: str
    handler: str
    step: int
    more: list[str]


class Shared(Message):
    id: str
    handler: str
    step: int


class Answer(Message):
    id: str


class Log(State):
    seen: list[str] = []
    starts: int = 0


class Fed(State):
    seen: list[str] = []
    fed: int = 0


class Line(State):
    ids: list[str] = []


class Died(BaseException):
    """The process is killed here."""


def change(table: MutableMapping[str, Line], id: str) -> None:  # noqa: A002
    """What a trace does to a table: it is noted under `order`, and the rest depends on what is there."""
    table.setdefault("order", Line()).ids.append(id)
    number = sum(id.encode()) + len(table["order"].ids)
    key = f"k{number % 3}"
    match number % 10:
        case 0:
            table[key] = Line([id])
        case 1:
            table.pop(key, None)
        case 2:
            table.pop(key, None)
            table[key] = Line([id])
        case 3 | 6 | 7 | 8 | 9 if key in table:
            table[key].ids.append(id)
        case 4:
            kept = {key: table[key] for key in ("order", "spoilt") if key in table}  # what one spoils none mends
            table.clear()
            table.update(kept)
        case 5:
            table[f"{key}'"] = Line()
            del table[f"{key}'"]
        case _:
            table.setdefault(key, Line()).ids.append(id)


class Acting(Handler):
    def act(self, message: Any) -> None:
        lab = _at_work[-1]
        id = message.id  # noqa: A001
        lab.tries[self.name, id] += 1
        first, mended = lab.tries[self.name, id] == 1, id in lab.mended
        for step, act in enumerate(message.acts.split(",")):
            about = (id, self.name, step)
            match act[:1]:
                case "+":
                    self.trace(id)
                case "p":
                    self.send(Told(*about, *self.seen()))
                case "P":
                    self.send(Told(*about, *self.seen(), LARGE))
                case "c":
                    self.send(Told(*about, *self.seen(), 2 * LARGE))
                case "r":
                    self.send(Other(*about, [id]))
                case "b":
                    self.send(Shared(*about))
                case "h" | "d" | "k" as kind:
                    type_ = {"h": Here, "d": There, "k": Heap}[kind]
                    self.send(type_(child_id(*about), ",".join(script_of(act))))
                case "a":
                    self.reply(Answer(id))
                case "e" if not mended:
                    self.stop_worker()
                case "s" if not mended:
                    self.stop_system()
                case "x" if not mended:
                    raise ValueError("x")
                case "u" if not mended:
                    self.send(Told(id, self.name, "u"))  # type: ignore[arg-type]
                case "m" if not mended:
                    self.send(Told(*about, text=TOO_LARGE))
                case "w" if not mended:
                    self.spoil(["not", "what", "it", "is"])
                case "W" if not mended:
                    self.spoil(object())
                case "y" if not mended:
                    nowhere = Answer(id)
                    self.send(nowhere)
                case "1" if first:
                    raise ValueError("1")
                case "2" if first:
                    self.spoil(["not", "what", "it", "is"])
                case "!" if first and lab.level != "memory":
                    raise Died

    def trace(self, id: str) -> None:  # noqa: A002
        """Stateless handlers leave none."""

    def seen(self) -> tuple[int, str]:
        return 0, ""

    def spoil(self, value: Any) -> None:
        raise ValueError("there is nothing to spoil")


class Logging(Acting):
    state: Log

    def trace(self, id: str) -> None:  # noqa: A002
        self.state.seen.append(id)

    def seen(self) -> tuple[int, str]:
        seen = self.state.seen
        return len(seen), seen[-1] if seen else ""

    def spoil(self, value: Any) -> None:
        self.state.starts = value


class Keeper(Logging):
    def on_start(self) -> None:
        self.state.starts += 1
        self.send(Told("start", self.name, self.state.starts))

    @handle
    def on_any(self, message: Do | Both) -> None:
        self.act(message)


class Inner(Logging):
    @handle
    def on_any(self, message: Here | There | Peek) -> None:
        self.act(message)


class Bundle(Logging):
    @handle(batch=True)
    def on_many(self, messages: list[Many]) -> None:
        while messages:
            self.act(messages.pop(0))


class Relay(Acting):
    @handle
    def on_pass(self, message: Pass) -> None:
        self.act(message)


class Rows(Acting):
    state: Table[str, Line]

    @handle
    def on_any(self, message: Row | Both | There) -> None:
        self.act(message)

    def trace(self, id: str) -> None:  # noqa: A002
        change(self.state, id)

    def seen(self) -> tuple[int, str]:
        seen = self.state["order"].ids if "order" in self.state else []
        return len(seen), seen[-1] if seen else ""

    def spoil(self, value: Any) -> None:
        self.state["spoilt"] = value


class Heaping(Acting):
    """Its values cannot change. How many there are stands behind them."""

    state: Table[str, int]

    @handle(batch=True)
    def on_heap(self, messages: list[Heap]) -> None:
        for message in messages:
            self.act(message)

    def trace(self, id: str) -> None:  # noqa: A002
        count = self.state.pop("#", 0)
        self.state[id] = count
        self.state["#"] = count + 1

    def spoil(self, value: Any) -> None:
        self.state["#"] = value


class Ticker(Acting):
    """A source: what it does are the scripts that the test has for it."""

    state: Fed

    def on_loop(self) -> float | None:
        scripts = _at_work[-1].scripts
        if self.state.fed >= len(scripts):
            return 0.001
        self.state.fed += 1
        self.act(Do(f"ticker{self.state.fed}", scripts[self.state.fed - 1]))
        return None

    def trace(self, id: str) -> None:  # noqa: A002
        self.state.seen.append(id)

    def seen(self) -> tuple[int, str]:
        seen = self.state.seen
        return len(seen), seen[-1] if seen else ""


class Feed(Handler):
    """Of a peer; never made."""

    def on_start(self) -> None: ...


class Sink(Handler):
    @handle
    def on_any(self, message: Told | Shared) -> None: ...


class Drain(Handler):
    @handle
    def on_any(self, message: Other | Shared) -> None: ...


KINDS: dict[str, type[Any]] = {"do": Do, "row": Row, "pass": Pass, "many": Many, "both": Both, "peek": Peek}
TARGETS = {
    "do": ("keeper",), "row": ("rows",), "pass": ("relay",), "many": ("bundle",), "both": ("keeper", "rows"),
    "peek": ("inner",),
    "h": ("inner",), "d": ("inner", "rows"), "k": ("heap",),
}  # fmt: skip
ASKED = ("do", "pass", "many")
FEEDS = {"p": "feed", "q": "drip", GATEWAY: GATEWAY}
STATELESS = "relay"


def child_id(id: str, handler: str, step: int) -> str:  # noqa: A002
    return f"{id}/{handler}{step}"


def script_of(act: str) -> tuple[str, ...]:
    """Of the message that this sends to another handler of the worker."""
    return tuple(act[2:] or "+")


@cache
def plan(level: str) -> Plan:
    """`p` is in a cycle with the worker, `q` only sends to it, and `r` only gets something from it."""
    app = Topology(
        "transactions",
        directory="/nowhere",
        durability=level,
        ring_bytes=RING_BYTES,
        outbox_limit_bytes=6000,
        max_claim_bytes=20_000,
    )
    app.worker("p", feed=Feed, sink=Sink)
    app.worker("q", drip=Feed)
    app.worker("r", drain=Drain)
    here = {"keeper": Keeper, "rows": Rows, "relay": Relay, "bundle": Bundle, "inner": Inner, "heap": Heaping}
    app.worker("w", **here, ticker=Ticker)
    for source in ("feed", "drip"):
        for kind, targets in TARGETS.items():
            if kind in KINDS:
                app.route(source, KINDS[kind], to=targets)
    for source in (*here, "ticker"):
        app.route(source, Told, to="sink")
        app.route(source, Other, to="drain")
        app.route(source, Shared, to=("sink", "drain"))
        app.route(source, Here, to="inner")
        app.route(source, There, to=("inner", "rows"))
        app.route(source, Heap, to="heap")
    for kind in ASKED:
        app.external(TARGETS[kind][0], KINDS[kind])
    return app.compile()


class Disk:
    """What may be wrong with the disk. `dies`: at the next write of a journal its process dies, or is told of an error,
    with nothing, a part or all of it written."""

    def __init__(self) -> None:
        self.full = False
        self.dies: str | None = None
        self.error: type[BaseException] = Died

    def directory(self, path: str) -> Directory:
        made = LabDirectory(path)
        made.disk = self
        return made


class LabDirectory(Directory):
    disk: Disk

    def _file(self, name: str, flags: int) -> File:
        opened = super()._file(name, flags)
        opened.__class__ = LabFile
        opened.disk = self.disk  # type: ignore[attr-defined]
        return opened


class LabFile(File):
    disk: Disk

    def allocate(self, offset: int, size: int) -> None:
        if self.disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(offset, size)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        if self.path.endswith(claims_on_disk.SUFFIX):
            if self.disk.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data, offset)
        dies, self.disk.dies = self.disk.dies, None
        if dies is None:
            return super().write(data, offset)
        part = {"before": 0, "within": len(data) // 2, "after": len(data)}[dies]
        super().write(data[:part], offset)
        raise OSError(errno.EIO, "") if self.disk.error is OSError else self.disk.error


_at_work: list[Lab] = []


class Lab:
    """The worker, incarnation by incarnation, and its peers. `inline`: so many local messages in one transaction;
    `order`: that in which the states of its handlers are encoded, which is nobody's choice otherwise."""

    def __init__(self, level: str, ring: str, inline: int, order: int) -> None:
        self.plan, self.level, self.clock, self.disk = plan(level), level, Clock(BEGIN), Disk()
        self.tries: Counter[tuple[str, str]] = Counter()
        self.mended: set[str] = set()
        self.scripts: list[str] = []
        self.deaths = 0
        self._taken: Counter[str] = Counter()  # the last number that a peer has
        self.folder = Path(tempfile.mkdtemp())
        self._ring_type = RINGS[ring]
        self._board_buffer = bytearray(board_size(self.plan.peers))
        self.board = Board.format(self._board_buffer, self.plan.peers)
        self.block = self.board.block("w")
        self.buffers = {(edge.source, edge.target): bytearray(ring_size(edge.ring_bytes)) for edge in self.plan.edges}
        for buffer in self.buffers.values():
            format_ring(buffer, RING_BYTES, 1)
        self.ends = {ends: PyRing(buffer) for ends, buffer in self.buffers.items()}  # the peers'
        self._codecs = {kind: RunCodec(type_) for kind, type_ in KINDS.items()}
        self.patch = pytest.MonkeyPatch()
        for module in (dispatch, endpoint, careful, housekeeping, workers, progress, claims_in_memory, sources):
            self.patch.setattr(module, "time", self.clock.module)
        self.patch.setattr(Hosted, "__hash__", lambda self: self.index ^ order, raising=False)
        self.patch.setattr(wiring, "attach_ring", self._attach)
        self.patch.setattr(local_messages, "INLINE_LIMIT", inline)
        self.patch.setattr(claims_on_disk, "Directory", self.disk.directory)
        self.patch.setattr(writer_module, "AHEAD_BYTES", 600)
        opening = partial(Journal.open, clock=lambda: self.clock.ns, reserve=RESERVE)
        self.patch.setattr(workers, "Journal", SimpleNamespace(open=opening))
        if self._ring_type is PyRing:
            self.patch.setattr(workers, "Progress", PyProgress)
            self.patch.setattr(workers, "Outgoing", partial(Outgoing, packs=False))
        _at_work.append(self)
        self.worker: Worker
        self._begin()

    def close(self) -> None:
        self._forget()
        _at_work.remove(self)
        self.patch.undo()
        shutil.rmtree(self.folder)
        for left in Path("/dev/shm").glob(f"{segment_prefix(RUN_ID)}*"):
            left.unlink()

    def _attach(self, run: str, edge: Any, wires: Wires) -> Any:
        return self._ring_type(self.buffers[edge.source, edge.target])

    # ------------------------------------------------------------------------------------------------ incarnations
    def _begin(self) -> None:
        boot = Boot(self.plan, "w", RUN_ID, str(self.folder / "w"), "51e5510a", self.deaths, None, {})
        self.arrivals: Sequence[Arrival] = ()
        self.worker = Worker(boot, self.board, self.block, Wires(), self.disk.directory)
        self.dispatcher, self.endpoint, self.house = self.worker._dispatcher, self.worker._endpoint, self.worker._house
        self.dispatcher.start(self.worker._again)
        self.sources = Sources(self.dispatcher, self.plan.limits.max_attempts)

    def _forget(self) -> None:
        self.endpoint.claims.close()
        if self.endpoint.journal is not None:
            self.endpoint.journal.close()

    def die(self) -> None:
        """Between two transactions, or wherever it was."""
        self.deaths += 1
        self.disk.dies = None
        self._forget()
        try:
            self._begin()
        except JournalFull:
            self.disk.full = False
            self._begin()

    def die_writing(self, written: str, error: type[BaseException] | None) -> None:
        """At the next write to its journal."""
        self.disk.dies, self.disk.error = written, error or Died

    def refuse(self, after: int, times: int) -> None:
        """The next appends to its journal but so many find no room."""
        journal = self.endpoint.journal
        assert journal is not None
        append, turns = type(journal).append, iter([False] * after + [True] * times)

        def refusing(transaction: Transaction) -> int:
            if next(turns, False):
                raise JournalFull("", 1, 0)
            return append(journal, transaction)

        self.patch.setattr(journal, "append", refusing)

    def die_in(self, call: str) -> None:
        """When its endpoint does this the next time."""

        def died(*_: object) -> Any:
            raise Died

        setattr(self.endpoint, call, died)

    def turn(self) -> None:
        """Once round the worker's loop. Whoever dies there begins anew."""
        try:
            self._turn()
        except (Died, JournalPoisoned):
            self.die()

    def _turn(self) -> None:
        dispatcher, endpoint = self.dispatcher, self.endpoint
        self.clock.ns += TURN_NS
        blocked = dispatcher.blocked
        if not self.arrivals:
            self.arrivals = endpoint.take()
        elif blocked and all(arrival.link in blocked for arrival in self.arrivals):
            self.arrivals = [*self.arrivals, *endpoint.take(blocked)]
        if self.arrivals:
            self.arrivals = dispatcher.run(self.arrivals)
        endpoint.progress()
        if not endpoint.paused and not (self.arrivals and dispatcher.careful.is_next(self.arrivals)):
            self.sources.call(self.clock.ns / 1e9)
        self.house.keep()

    def renew(self) -> None:
        """The journal begins a new segment."""
        if self.endpoint.journal is not None:
            try:
                self.house._renew(self.endpoint.journal)
            except (Died, JournalPoisoned):
                self.die()

    # ------------------------------------------------------------------------------------------------ peers
    def push(self, peer: str, first: int, kind: str, messages: Sequence[Any], flags: int) -> bool:
        """A run comes. False if its ring is full."""
        (route,) = (
            one.id
            for one in self.plan.routes
            if one.message is KINDS[kind] and one.source == FEEDS[peer] and "w" in self.plan.target_peers(one)
        )
        body = self._codecs[kind].encode_run(messages)
        return self.ends[peer, "w"].push(pack_header(first, len(messages), route, flags) + body)

    def push_command(self, first: int, body: bytes) -> bool:
        return self.ends[GATEWAY, "w"].push(pack_header(first, 1, 0, FLAG_COMMAND) + body)

    def take(self, peer: str, acknowledged: bool) -> list[tuple[int, int, int, bytes]]:
        """All that a peer finds: (first, count, flags, body)."""
        ring, found = self.ends["w", peer], []
        for taken in ring.take_many(1000, 1 << 20):
            first, count, _, flags = unpack_header(taken)
            found.append((first, count, flags, bytes(taken)[RUN.size :]))
        ring.release()
        if found:
            first, count, *_ = found[-1]
            self._taken[peer] = max(self._taken[peer], first + count - 1)
        if acknowledged:
            ring.set(Cell.ACK, self._taken[peer])
        return found

    # ------------------------------------------------------------------------------------------------ looking
    @property
    def wants_an_end(self) -> bool:
        context = self.dispatcher._context
        return bool(self.dispatcher.leaving or context.end or context.stop or self.block.get(Field.STOP_REQUESTED))

    @property
    def idle(self) -> bool:
        """It waits for messages, and for nothing else."""
        endpoint = self.endpoint
        return not self.arrivals and not self.dispatcher.blocked and endpoint.settled and endpoint.all_taken
