"""The ILM protocol towards one peer, sans-IO: both directions, the greeting, retries, and who lost what. Pure.

Contract
- The caller owns clock, transport and backend. Time is a float of seconds that is passed in and only ever compared.
- Frames out are pulled: `next_frame` gives the next one that may go now, None if there is none. The caller sends each
  one before it pulls again, and pulls after every call of any other method here. `deadline` says when `tick` is due.
- `received` takes any bytes. What it returns must be acted upon at once: `remember` is committed before anything else
  goes out; `problem` is reported. WireError leaves everything as it was.
- Messages that arrived wait in the inbox, in order and without holes, each once; never more than `inbox` bytes
  and one frame, whatever the peer does. What does not fit is as if it were lost, and is asked for when there is room.
- `delivered` follows the commit (and the sync, at level power) of the watermark; only then it is acknowledged.
- `committed` follows the commit (and sync) of a run; only then it is published. Nothing is published on a connection
  before the peer has said on it what it has: an end whose storage went back in time is found out before a number is
  used twice.
- A conclusion about lost state is only drawn from a poll that answers one of this connection, or from what stays true
  for ever; frames that were delayed, doubled or reordered lead to no such conclusion.
- With a problem, nothing but polls is exchanged. It stays until the caller forgets the peer; but what is known from
  the peer only (that it lost its state; or, by an end that has lost all, that the peer remembers more) ends with that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from persist.errors import ProtocolViolation
from persist.ilm import wire
from persist.ilm.backend import PeerState, Run
from persist.ilm.errors import LostOwnState, PeerLostState, WireError
from persist.ilm.flight import FRAME_BYTES, Flight, Limits
from persist.ilm.message import PeerId
from persist.ilm.wire import RUN_HEAD, RUN_HEAD_BYTES, Acknowledgement, Message, Poll
from persist.link import DUPLICATE, NEW, UNKNOWN, Entry, Inbound, Kind, Outbound


@dataclass(frozen=True, slots=True)
class Received:
    """arrived    messages entered the inbox
    acked      the acknowledged number rose to this, else 0
    remember   the store of the peer, to be committed now; else 0
    first      from now on what is committed may be published: to be remembered, for the next `restore`
    problem    what was found out just now
    healed     the problem that there was is none any more
    """

    arrived: bool = False
    acked: int = 0
    remember: int = 0
    first: bool = False
    problem: PeerLostState | LostOwnState | None = None
    healed: bool = False


NOTHING = Received()
ARRIVED = Received(arrived=True)


class Session:
    """One peer. `own_store` and `peer_store` (0: not known yet) are the identities of the two states; `nonce` is never
    used twice, and nor are the numbers just above it."""

    def __init__(
        self, local: PeerId, peer: PeerId, own_store: int, peer_store: int, nonce: int, limits: Limits | None = None
    ) -> None:
        self.local = local
        self.peer = peer
        self.own_store = own_store
        self.peer_store = peer_store
        self.limits = limits or Limits()
        self.outbound = Outbound(self.limits.window)
        self.inbound = Inbound()
        self.problem: PeerLostState | LostOwnState | None = None
        self.is_connected = False
        self.greeted = False  # the peer has said on this connection what it has
        self.inbox: deque[tuple[Message, int]] = deque()  # frames, and how many messages of each to skip
        self.inbox_bytes = 0
        self._inbox_overran = False
        self._nonce = nonce
        self._peer_nonce = 0
        self._poll_due = self._ask_due = self._ack_due = False
        self._unasked_poll_at = float("-inf")  # when something that arrived was last answered unasked
        self._gap_at = 0  # behind which number
        self._pieces: deque[bytes] = deque()  # frames of a run that does not fit one
        self._reach: int | None = 0  # the last number that may have been published; None: all
        self._restored_reach = 0
        self._asked: int | None = None  # what was published when the peer was asked and has not answered yet
        self._flight = Flight(self.limits)

    def restore(self, state: PeerState, reach: int) -> None:
        """Begin where the backend ends. `reach` is the last number that may ever have been published: the last of all,
        unless what was committed behind it never was, because since then no session came to its `first`."""
        self.outbound.restore(state.assigned, state.acked, UNKNOWN, state.from_position)
        self.inbound = Inbound(state.watermark)
        self._reach = self._restored_reach = reach

    # --- the connection

    def connected(self, now: float) -> None:
        """There is a new connection: greet."""
        self.is_connected = True
        self.greeted = False
        self._nonce += 1
        self._peer_nonce = 0
        self._poll_due = True
        if self.problem is None or self._may_heal:
            self._flight.await_answer(now)

    def lost(self) -> None:
        """There is no connection. What was published may not have arrived; the next greeting tells."""
        self.is_connected = self.greeted = False
        self._poll_due = self._ask_due = self._ack_due = False
        self._flight.deadline = None

    def unlearn(self, outcome: Received) -> None:
        """What was to be remembered could not be: it is to be learned again, after the next greeting."""
        if outcome.remember:
            self.peer_store = 0
        if outcome.first:
            self._reach = self._restored_reach
        self.lost()

    @property
    def has_due(self) -> bool:
        """A poll or an acknowledgement is to be sent."""
        return self.is_connected and (self._poll_due or self._ack_due)

    @property
    def deadline(self) -> float | None:
        """When `tick` is due."""
        return self._flight.deadline

    def tick(self, now: float) -> bool:
        """Ask the peer what it has if it is time to; says whether it was."""
        if not self._flight.tick(now):
            return False
        self._poll_due = self._ask_due = True
        return True

    # --- out

    def committed(self, run: Run, position: int) -> None:
        """The run, which follows the one before, may be published."""
        self.outbound.assign(run.count)
        self.outbound.committed(run.first, run.count, len(run.body), run.body, position)

    @property
    def needs_refill(self) -> bool:
        """Call `refill` with what the backend has behind `outbound.published`, from `outbound.spilled_from` on."""
        return self.outbound.needs_refill and self._may_publish

    def refill(self, runs: Iterable[Run]) -> None:
        self.outbound.refill(Entry(run.first, run.count, len(run.body), run.body, run.position) for run in runs)

    @property
    def _may_publish(self) -> bool:
        return self.greeted and self.problem is None and self._flight.has_room()

    def next_frame(self, now: float) -> bytes | None:
        """What to send now."""
        if not self.is_connected:
            return None
        if self._poll_due:
            return self._poll()
        if self._ack_due:
            self._ack_due = False
            if self.peer_store and self.problem is None:
                return wire.encode(
                    Acknowledgement(self.own_store, self.peer_store, self.inbound.watermark, self.outbound.acked)
                )
        if not self._may_publish:
            return None
        return self._pieces.popleft() if self._pieces else self._run(now)

    def _poll(self) -> bytes:
        ask = (self._ask_due or not self.greeted) and (self.problem is None or self._may_heal)
        self._poll_due = self._ask_due = False
        if ask:
            self._asked = self.outbound.published
        poll = Poll(
            sender=self.own_store,
            receiver=self.peer_store,
            number=self.inbound.seen,
            known=self.outbound.acked,
            nonce=self._nonce,
            echo=self._peer_nonce,
            source=self.local,
            destination=self.peer,
            ask=ask,
            lost=isinstance(self.problem, LostOwnState) and not self._may_heal,
            refuses=isinstance(self.problem, PeerLostState) and not self._may_heal,
        )
        return wire.encode(poll)

    def _run(self, now: float) -> bytes | None:
        """The next entries in one frame, as many as follow each other in number and id and have room."""
        outbound = self.outbound
        entry = outbound.peek()
        if entry is None or not self._flight.has_room(entry.size):
            return None
        fits = min(self.limits.frame, FRAME_BYTES) - wire.HEADER_BYTES
        outbound.pop()
        first, count, size, body = entry.first, entry.count, entry.size, entry.payload
        if size + wire.HEADER_BYTES > self.limits.frame:
            return self._in_pieces(entry, now)
        parts = [body]
        room = min(fits, max(self._flight.room, size)) - size
        following = RUN_HEAD.unpack_from(body)[0] + count
        while True:
            entry = outbound.peek()
            if entry is None or entry.size - RUN_HEAD_BYTES > room:
                break
            if entry.first != first + count or RUN_HEAD.unpack_from(entry.payload)[0] != following:
                break
            outbound.pop()
            parts.append(entry.payload[RUN_HEAD_BYTES:])
            room -= entry.size - RUN_HEAD_BYTES
            size += entry.size - RUN_HEAD_BYTES
            following += entry.count
            count += entry.count
        self._flight.launch(outbound.published, size, now)
        return wire.message_frame(self.own_store, self.peer_store, first, outbound.acked, count, parts)

    def _in_pieces(self, entry: Entry, now: float) -> bytes:
        """A run that was committed when frames were longer."""
        known = self.outbound.acked
        for first, count, body in wire.split(
            entry.first, entry.count, entry.payload, self.limits.frame - wire.HEADER_BYTES
        ):
            self._pieces.append(wire.message_frame(self.own_store, self.peer_store, first, known, count, [body]))
        self._flight.launch(entry.last, entry.size, now)
        return self._pieces.popleft()

    def _rewind(self, number: int) -> None:
        """Publish again from behind `number`."""
        before = self.outbound.published
        self.outbound.rewind(number)
        if self.outbound.published < before:
            self._pieces.clear()
            self._flight.turn_back(self.outbound.published)

    # --- in

    def received(self, data: bytes, now: float) -> Received:
        """A frame from this peer."""
        frame = wire.decode(data)
        if isinstance(frame, Poll):
            return self._polled(frame, now)
        if frame.sender != self.peer_store or frame.receiver != self.own_store or self.problem is not None:
            if self._unasked(now):
                self._poll_due = self._ask_due = True
            return NOTHING
        if frame.known > self.inbound.watermark:
            return self._found(LostOwnState(self.peer, "received", frame.known, self.inbound.watermark))
        if isinstance(frame, Message):
            return self._arrived(frame, now)
        return self._acknowledged(frame.number, now)

    def _arrived(self, frame: Message, now: float) -> Received:
        verdict = self.inbound.admit(frame.number, frame.count)
        if verdict is DUPLICATE:
            self._ack_due = True
            return NOTHING
        if verdict is not NEW and verdict.kind is Kind.GAP:
            if self._gap_at != verdict.expected:
                self._gap_at = verdict.expected
                self._unasked_poll_at = float("-inf")
            self._poll_due |= not self._inbox_overran and self._unasked(now)
            return NOTHING
        if self.inbox and self.inbox_bytes + len(frame.frame) > self.limits.inbox_bytes:
            self._inbox_overran = True
            return NOTHING
        self.inbox.append((frame, verdict.skip))
        self.inbox_bytes += len(frame.frame)
        self.inbound.stage(frame.number + frame.count - 1)
        return ARRIVED

    def took(self, frame: Message) -> None:
        """The first frame of the inbox, this one, has been worked off; the caller has removed it."""
        self.inbox_bytes -= len(frame.frame)
        if self._inbox_overran and 2 * self.inbox_bytes <= self.limits.inbox_bytes:
            self._inbox_overran = False
            self._poll_due = True

    def delivered(self, through: int) -> None:
        """Everything up to `through` is delivered, durably: acknowledge."""
        if through > self.inbound.seen:
            raise ValueError(f"delivered up to {through}, but only {self.inbound.seen} arrived")
        if through > self.inbound.watermark:
            self.inbound.watermark = through
            self._ack_due = self.is_connected

    def _acknowledged(self, number: int, now: float) -> Received:
        outbound = self.outbound
        if number <= outbound.acked:
            return NOTHING
        if self._reach is not None and number > self._reach:
            return self._found(LostOwnState(self.peer, "sent", number, self._reach))
        try:
            outbound.acknowledge(number)
        except ProtocolViolation as violation:
            return self._found(LostOwnState(self.peer, "sent", number, violation.limit))
        self._flight.land(number, now)
        if self.greeted:  # else an answer to the greeting is awaited
            self._await_progress(now)
        return Received(acked=number)

    # --- greetings

    def _polled(self, poll: Poll, now: float) -> Received:
        if poll.source != self.peer or poll.destination != self.local:
            raise WireError(f"a poll from {poll.source!r} to {poll.destination!r} came to {self.local!r}")
        renewed = poll.nonce != self._peer_nonce
        self._peer_nonce = poll.nonce
        outcome = NOTHING
        if poll.echo == self._nonce:
            outcome = self._fresh(poll, now)
        elif (renewed or poll.sender != self.peer_store or poll.receiver != self.own_store) and (
            poll.ask or (self.problem is None and self._unasked(now))
        ):
            self._poll_due = self._ask_due = True
        if poll.ask:
            self._poll_due = True
            self._ack_due = self.inbound.watermark > 0
        return outcome

    @property
    def _may_heal(self) -> bool:
        """The problem is there only as long as the peer says so."""
        problem = self.problem
        if problem is None:
            return False
        return problem.what == "state" or (isinstance(problem, LostOwnState) and self.peer_store == 0)

    def _fresh(self, poll: Poll, now: float) -> Received:
        """A poll that was made after this connection began."""
        asked, self._asked = self._asked, None
        healed = False
        if self.problem is not None:
            if not self._may_heal or poll.lost or poll.refuses or poll.receiver not in (0, self.own_store):
                return NOTHING
            self.problem, healed = None, True
        if self.peer_store and poll.sender != self.peer_store:
            return self._found(PeerLostState(self.peer, "store", self.peer_store, poll.sender))
        if poll.receiver not in (0, self.own_store):
            return self._found(LostOwnState(self.peer, "store", poll.receiver, self.own_store))
        if poll.lost and self.peer_store:
            return self._found(PeerLostState(self.peer, "state", self.outbound.acked, poll.number))
        if poll.refuses and self.peer_store:
            return self._found(LostOwnState(self.peer, "state", poll.known, self.inbound.watermark))
        remember = 0 if self.peer_store else poll.sender
        if remember or healed:
            self._believe_anew()
        self.peer_store = poll.sender
        if poll.known > self.inbound.watermark:
            lost = LostOwnState(self.peer, "received", poll.known, self.inbound.watermark)
            return self._found(lost, remember)
        if self._reach is not None and poll.number > self._reach:
            return self._found(LostOwnState(self.peer, "sent", poll.number, self._reach), remember)
        # An answer need not know what was published after the question; only what it should know is missing there.
        if asked is None or poll.number < asked or poll.number > self.outbound.published:
            try:
                self._rewind(poll.number)
            except ProtocolViolation as violation:
                return self._found(LostOwnState(self.peer, "sent", poll.number, violation.limit), remember)
        first, self._reach = self._reach is not None, None
        if self.greeted:
            self._flight.answered(now, is_behind=self.outbound.published > self.outbound.acked)
        else:
            self.greeted = True
            self._await_progress(now)
        return Received(remember=remember, first=first, healed=healed)

    def _await_progress(self, now: float) -> None:
        """From now on, if anything is not acknowledged."""
        self._flight.deadline = None
        if self.outbound.published > self.outbound.acked:
            self._flight.await_answer(now)

    def _found(self, problem: PeerLostState | LostOwnState, remember: int = 0) -> Received:
        """Exchange nothing more, and let the peer know."""
        self.problem = problem
        self._believe_anew()
        self._poll_due = True
        if not self._may_heal:
            self._flight.deadline = None
        return Received(problem=problem, remember=remember)

    def _believe_anew(self) -> None:
        """What the peer has said before, and may still be under way, is not believed any more."""
        self._nonce += 1

    def _unasked(self, now: float) -> bool:
        """Whether it may be answered what did not ask; not each time, or two ends would keep each other busy."""
        if now < self._unasked_poll_at + self.limits.retry_first:
            return False
        self._unasked_poll_at = now
        return True
