"""Sends of the transaction at hand: buffered in the process, grouped into runs, encoded at the commit.

Order holds per edge. A run is extended while no other route has sent on any of its edges since; otherwise a new run
begins. Messages of classes with plain fields are encoded at once by a packer (`bus.Packer`), but for those that it
refuses, and all that follow them in the same run. Of these, and of all others, those that cannot change after `send`
are kept as objects and encoded a run at a time; the rest is encoded, checked and sized at once.
Nothing here has a sequence number: a send that is refused has used none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from msgspec import Struct

from actors.codec import FLAG_CLAIM, RunCodec
from actors.errors import SenderError, UnroutedMessage
from actors.packing import length_of
from actors.plan import Route
from actors.tickets import ALONE, Large
from bus import RING_IMPLEMENTATION, Packer, Sender

EVERYWHERE: Mapping[int, int] = {}
HEAVY_BYTES = 4 << 20  # of messages with claims, and of messages between handlers of the worker
ROW_BYTES = 1 << 16  # of rows


class EncodedRun(Struct, frozen=True):
    """What a commit takes: `length` messages of one route in `body`, for the given peers (indexes)."""

    route: int
    length: int
    flags: int
    peers: tuple[int, ...]
    body: bytes | Large  # flagged as a claim where it is Large


class LocalSend(NamedTuple):
    """A message for handlers of the same worker; `message` is the object itself, or its encoding if it could change."""

    lane: Lane
    message: Any


Put = Callable[[Any], object]
Puts = dict[type, Put | Packer]  # of one handler: what takes its messages of each class


class Lane:
    """One route as its source handler sees it. What takes its messages, in `puts`, changes as runs open and close."""

    __slots__ = (
        "_first",
        "_puts",
        "_type",
        "codec",
        "large",
        "local",
        "mean",
        "messages",
        "packer",
        "peers",
        "route",
        "source",
    )

    def __init__(
        self, route: Route, codec: RunCodec, peers: tuple[int, ...], local: bool, outgoing: Outgoing, puts: Puts
    ) -> None:
        assert route.message is not None
        self.route = route.id
        self.source = route.source
        self.codec = codec
        self.peers = peers
        self.local = local
        self.mean = 0.0  # bytes of a message, as they were lately
        self.large = False  # a message of its run may be Large
        self.messages: list[Any] = []  # of the open run, behind those that its packer has
        self.packer: Packer | None = None
        self._puts = puts
        self._type = route.message
        self._first = puts[self._type] = self._opener(outgoing)

    def close(self) -> None:
        self._puts[self._type] = self._first
        self.messages = []
        if self.packer is not None:
            self.packer.end()
            self.packer.clear()

    @property
    def length(self) -> int:
        """Messages of the open run."""
        return len(self.messages) + (0 if self.packer is None else self.packer.count)

    def _opener(self, outgoing: Outgoing) -> Put:
        """What opens a run on all edges, and leaves the quickest way into it in its place."""
        plain = bool(self.peers) and not self.local and self.codec.packing is not None
        packs = plain and outgoing.packs
        length = length_of(self.codec.packing) if plain and not packs else None
        sized = packs or length is not None
        prepare = outgoing.sizer(self, length) if sized and self.codec.late else outgoing.preparer(self)
        queue, puts, type_ = outgoing.local, self._puts, self._type

        def put_local(message: Any) -> None:
            queue.append(LocalSend(self, prepare(message)))

        def keep(prepared: Any) -> None:
            append = self.messages.append
            append(prepared)
            if self.codec.late and not self.local and not packs and length is None:
                puts[type_] = append
                return

            def put(message: Any) -> None:
                prepared = prepare(message)
                append(prepared)
                if self.local:
                    queue.append(LocalSend(self, prepared))

            puts[type_] = put
            if self.local:
                queue.append(LocalSend(self, prepared))

        def open_run(message: Any) -> None:
            prepared = prepare(message)
            outgoing.open(self)
            keep(prepared)

        def open_packed(message: Any) -> None:
            outgoing.begin(self)
            pieces: list[Any] = []
            packer.begin(pieces)
            if packer.put(message):
                outgoing.open(self, pieces)
                puts[type_] = packer
            else:
                packer.clear()
                open_run(message)

        if not self.peers:
            return put_local if self.local else prepare  # routed to nobody, on purpose
        if not packs:
            return open_run
        packer = self.packer = outgoing.packer(self, lambda message: keep(prepare(message)))
        return open_packed


class _Run(NamedTuple):
    lane: Lane
    pieces: list[Any]  # of a packer: how many, their body, how many, ...
    messages: list[Any]  # behind them


class Outgoing:
    """The buffered sends of one worker. `local` holds what this worker's own handlers still have to handle.

    `lay` takes a large message, as it is when it is sent, out of the hands of who sent it. `full` is called when so
    much was sent that the transaction should end.
    """

    def __init__(
        self,
        max_message_bytes: int,
        max_run_bytes: int,
        max_claim_bytes: int = 0,
        in_ring: Mapping[int, int] = EVERYWHERE,
        *,
        packs: bool = RING_IMPLEMENTATION == "c",
    ) -> None:
        self.local: deque[LocalSend] = deque()
        self.packs = packs
        self.lay: Callable[[Large], Large] = Large.copied
        self.full: Callable[[], object] = bool
        self._max_message = max_message_bytes
        self._in_ring = in_ring  # peers whose rings hold less than max_message_bytes, and the largest message they do
        self._max_claim = max_claim_bytes  # what is over max_message_bytes gets a claim, up to this
        self._max_run = max_run_bytes
        self._large = 0  # bytes that wait for their claims
        self.between = 0  # bytes of messages to handlers of the worker, also of those that are handled by now
        self._runs: list[_Run | EncodedRun] = []
        self._open: dict[int, Lane] = {}
        self._used: list[Lane] = []  # that have been open in this transaction, or whose packers have been at work
        self._closed = 0  # messages of runs that are not open any more, once for each edge
        self._rows: set[int] = set()  # peers to which rows were sent, not in their ring
        self._waiting_bytes = 0  # of rows, in this process's memory
        self.row_bytes = 0  # that were reserved
        self.rows_full = False  # of rows: those in this process's memory, or in a ring, are enough for one transaction

    def sender(self, handler: str, puts: Puts) -> Callable[[Any], None]:
        """The `send` of one handler. Raises UnroutedMessage for a type that no route takes from it."""

        def missing(message: Any) -> NoReturn:
            raise UnroutedMessage(handler, type(message).__name__, tuple(t.__name__ for t in puts))

        return Sender(puts, missing).send

    def packer(self, lane: Lane, refused: Put) -> Packer:
        codec = lane.codec
        assert codec.packing is not None
        in_ring = self._limit(lane.peers)
        return Packer(codec.type, *codec.packing, min(self._max_run, in_ring), in_ring, refused)

    def preparer(self, lane: Lane) -> Callable[[Any], Any]:
        """What `send` makes of a message at once: nothing, its checked self, or its encoding.

        A message to a handler of the same worker is held to the same rules as one that travels, so that it does not
        matter to a program which worker hosts what.
        """
        codec, in_ring = lane.codec, self._limit(lane.peers)

        def blamed(message: Any) -> Any:
            try:
                body = codec.encode_alone(message, in_ring, self._max_claim)
            except SenderError as error:
                error.blame(lane.source)
                raise
            if lane.local:
                self.between += body.size if isinstance(body, Large) else len(body)
                if self.between >= HEAVY_BYTES:
                    self.full()
            if isinstance(body, Large):
                body = self.lay(body) if lane.peers else body.copied()
                lane.large = not codec.late
                self._count_large(body.size)
            return message if codec.late else body

        return blamed if lane.local or not codec.late else lambda message: message

    def sizer(self, lane: Lane, length: Callable[[Any], int] | None) -> Callable[[Any], Any]:
        """What `send` makes of a message that a packer has refused: itself, or Large if that is why. What is wrong with
        it is told when it is encoded. Without packers, `length` tells who may be too long, and is not encoded twice."""
        codec, in_ring = lane.codec, self._limit(lane.peers)
        few = in_ring // 8  # a character may take four bytes

        def sized(message: Any) -> Any:
            if length is not None and length(message) <= few:
                return message
            try:
                body = codec.encode_alone(message, in_ring, self._max_claim)
            except SenderError:
                return message
            if not isinstance(body, Large):
                return message
            body = self.lay(body)
            lane.large = True
            self._count_large(body.size)
            return body

        return sized

    def _count_large(self, size: int) -> None:
        self._large += size
        if self._large >= HEAVY_BYTES:
            self.full()

    def _limit(self, peers: tuple[int, ...]) -> int:
        """The largest message that goes through the rings to all of these."""
        return min([self._max_message, *(self._in_ring[peer] for peer in peers if peer in self._in_ring)])

    def begin(self, lane: Lane) -> None:
        """A lane whose packer is about to begin. Whatever interrupts it from here on, `clear` ends that."""
        self._used.append(lane)

    def open(self, lane: Lane, pieces: list[Any] | None = None) -> None:
        """A run of this lane, which begins with the pieces that its packer makes."""
        for peer in lane.peers:
            if peer in self._open:
                self._close(peer, lane)
            self._open[peer] = lane
        lane.messages = []
        if pieces is None:
            self._used.append(lane)
        self._runs.append(_Run(lane, [] if pieces is None else pieces, lane.messages))

    def _close(self, peer: int, but: Lane | None = None) -> None:
        lane = self._open.get(peer)
        if lane is not None and lane is not but:
            self._closed += lane.length * len(lane.peers)
            lane.close()

    def add(self, run: EncodedRun) -> None:
        """A run encoded elsewhere: a reply, whose edges carry nothing else that it could overtake, or rows that are in
        their ring already, before all else."""
        self._runs.append(run)

    def rows_wait(self, size: int) -> None:
        """So many bytes of them, in this process's memory."""
        self._waiting_bytes += size
        self.rows_full |= self._waiting_bytes >= ROW_BYTES

    def add_rows(self, lane: Lane, runs: Iterable[EncodedRun]) -> None:
        """Runs of rows, behind all that was sent before; what is sent after them begins a run of its own."""
        for peer in lane.peers:
            self._close(peer)
            self._open.pop(peer, None)
        self._rows.update(lane.peers)
        self._runs.extend(runs)

    def is_unused(self, peer: int) -> bool:
        """Nothing was sent to it, but rows that were written in its ring."""
        return peer not in self._open and peer not in self._rows

    @property
    def sent(self) -> int:
        """Grows with every send of the transaction (runs count too: only comparing two readings makes sense)."""
        return len(self._runs) + len(self.local) + self._closed + sum(lane.length for lane in self._open.values())

    @property
    def heavy(self) -> bool:
        """It is time to commit: what waits for claims is in this process's memory until then, and so are rows, and all
        that comes of messages between handlers of the worker."""
        return self._large >= HEAVY_BYTES or self.between >= HEAVY_BYTES or self.rows_full

    def __bool__(self) -> bool:
        return bool(self._runs or self.local)

    def encode(self, own: int) -> list[EncodedRun]:
        """Everything buffered, in order; what local handlers have not handled goes to the worker itself (peer `own`).

        Raises BadMessage or MessageTooLarge naming handler and message; the buffer is then as before.
        """
        encoded: list[EncodedRun] = []
        for run in self._runs:
            if isinstance(run, EncodedRun):
                encoded.append(run)
                continue
            if run.lane.packer is not None:
                _add_packed(run, encoded)
            if run.messages:
                encode = self._encode_large if run.lane.large else self._encode
                encoded.extend(encode(run.lane, run.messages, run.lane.peers))
        for lane, messages in _grouped(self.local) if self.local else ():
            encode = self._encode_large if lane.large else self._encode
            encoded.extend(encode(lane, messages, (own,)))
        return encoded

    def _encode(self, lane: Lane, messages: Sequence[Any], peers: tuple[int, ...]) -> Iterator[EncodedRun]:
        """Cut so that a run fits a record; a message too long for that is a run of its own, up to the size limit.

        By the size of earlier messages, so that as a rule nothing is encoded twice.
        """
        in_ring = self._limit(peers) if self._in_ring else self._max_message
        codec, limit = lane.codec, self._max_run if self._max_run < in_ring else in_ring
        step = int(limit / lane.mean) if lane.mean else len(messages)
        at = 0
        try:
            while at < len(messages):
                part = messages if step >= len(messages) else messages[at : at + max(1, step)]
                body = codec.encode_run(part) if codec.late else codec.join(part)
                if codec.late:
                    codec.check_run(body, part)
                # failpoint: run-encoded
                lane.mean = 1.02 * len(body) / len(part)
                if len(body) <= limit:
                    yield EncodedRun(lane.route, len(part), 0, peers, body)
                else:
                    for count, piece in codec.split_run(part, limit, max(in_ring, self._max_claim)):
                        if len(piece) - len(ALONE) > in_ring:
                            large = Large("", (memoryview(piece)[len(ALONE) :],))
                            yield EncodedRun(lane.route, 1, FLAG_CLAIM, peers, large)
                        else:
                            yield EncodedRun(lane.route, count, 0, peers, piece)
                at += len(part)
        except SenderError as error:
            error.blame(lane.source)
            raise

    def _encode_large(self, lane: Lane, messages: Sequence[Any], peers: tuple[int, ...]) -> Iterator[EncodedRun]:
        """Those that get claims are runs of their own, and what stands between them are runs as usual."""
        part: list[Any] = []
        for message in messages:
            if isinstance(message, Large):
                yield from self._encode(lane, part, peers)
                yield EncodedRun(lane.route, 1, FLAG_CLAIM, peers, message)
                part = []
            else:
                part.append(message)
        yield from self._encode(lane, part, peers)

    def clear(self) -> None:
        """After a commit, and for a rollback: the buffered sends are gone, the lanes closed."""
        for lane in self._used:
            lane.close()
        self._used.clear()
        self._open.clear()
        self._runs.clear()
        self._closed = self._large = self.between = self._waiting_bytes = self.row_bytes = 0
        self.rows_full = False
        if self._rows:
            self._rows.clear()
        if self.local:
            self.local.clear()


def _add_packed(run: _Run, encoded: list[EncodedRun]) -> None:
    lane, pieces = run.lane, run.pieces
    assert lane.packer is not None
    lane.packer.end()
    for at in range(0, len(pieces), 2):
        # failpoint: run-encoded
        encoded.append(EncodedRun(lane.route, pieces[at], 0, lane.peers, pieces[at + 1]))


def _grouped(sends: Iterable[LocalSend]) -> Iterator[tuple[Lane, list[Any]]]:
    """Consecutive sends of one lane together, order kept."""
    lane: Lane | None = None
    messages: list[Any] = []
    for send in sends:
        if send.lane is not lane and lane is not None:
            yield lane, messages
            messages = []
        lane = send.lane
        messages.append(send.message)
    if lane is not None:
        yield lane, messages
