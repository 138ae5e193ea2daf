"""The endpoint of one worker: its journal, its links and its rings. It makes a transaction durable and moves it.

The order of one commit, and nothing may come earlier than it stands here (DESIGN, the life of a message):

    append   one journal append: what was consumed, what is sent, the new state      (level memory: nothing)
    sync     fdatasync                                                               (level power only)
    publish  committed sends go to the rings, as far as there is room
    release  the acknowledgement cells take the durable watermarks, the heads of the inbound rings advance

A full ring delays publishing and nothing else. What the peers acknowledged leaves the outbox by `progress`, and by
the acknowledgement cells only. A full disk refuses what sends, and nothing else: JournalFull, with all as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

from actors.claims import Claims
from actors.codec import FLAG_CLAIM, FLAG_COMMAND, RUN, unpack_header
from actors.errors import BadRecord, MessageTooLarge
from actors.in_place import Places, RingPlace
from actors.links import ENTRY_BYTES, Arrival, Link
from actors.outgoing import EncodedRun
from actors.overload import Overload
from actors.publishing import publish, publish_straight, refill
from actors.restoring import restore
from bus import Block, Cell, Doorbell, Field, Ring
from persist.errors import JournalFull, ProtocolViolation
from persist.format import DeadLetter, Send, Transaction
from persist.journal import Journal
from persist.link import DUPLICATE, NEW, Kind
from persist.recovery import Recovered

TAKE_RECORDS = 64  # records of one ring in one batch
COPIED = 1 << 10  # bytes of a record up to which a copy costs less than a view
TAKE_BYTES = 1 << 16  # bytes of one ring in one batch; after a death this much may be handled one by one
TAKE_SHARE = 4  # but of rows that come by more than that at a time, the 4th part of their ring: they are not copied


class Endpoint:
    """The links of one worker over its journal (None at level `memory`). Used by one thread at a time."""

    def __init__(
        self,
        me: str,
        names: Sequence[str],
        block: Block,
        *,
        level: str,
        outbox_limit: int,
        memory_limit: int,
        claims_limit: int | None = None,
    ) -> None:
        self.level = level
        self.links = [Link(index, name, memory_limit) for index, name in enumerate(names)]
        self.me = self.links[list(names).index(me)]
        self.me.inside = True
        self.journal: Journal | None = None
        self.block = block
        self.cells = block.cells
        self.dead: list[DeadLetter] = []  # every dead letter that is kept
        self.dead_peers = list(names)  # who sent them, by their `peer`; also those that the topology no longer has
        self.epoch = 0
        self.overload = Overload(block, outbox_limit, claims_limit)
        self.claims = Claims(me)  # where large messages lie; whoever opens the journal puts the real one here
        self.rows: set[int] = set()  # the routes whose runs are rows
        self.places = Places()
        self._held = False
        self._left: Collection[Link] = ()  # from which something was taken that is not committed
        self._changed = True  # what waits for the receivers may have, since it was weighed
        self._own_until = 0  # level memory: nothing is acknowledged before the own message with this number is consumed
        self._sending: list[Link] = []  # links with an outbound ring
        self._receiving: list[Link] = []  # links with an inbound ring
        self._waiting: Callable[..., list[int]] = lambda *seconds: []  # `Ring.waiting` of the inbound rings
        self._outbound: list[Ring] = []  # the rings of those
        self._inbound: list[Ring] = []
        self._behind: list[Link] = []  # all that have something to publish, and maybe others
        self._taken: list[Link] = []  # from which something was taken since the last release

    # ------------------------------------------------------------------------------------------------ setting up
    def connect(
        self, name: str, *, producing: Ring | None, consuming: Ring | None, bell: Doorbell, inside: bool
    ) -> None:
        link = next(link for link in self.links if link.name == name)
        link.producing, link.consuming, link.bell, link.inside = producing, consuming, bell, inside
        if producing is not None:
            link.largest = producing.max_record - RUN.size
            self._sending.append(link)
            self._outbound.append(producing)
        if consuming is not None:
            self._receiving.append(link)
            self._inbound.append(consuming)
            self._waiting = partial(type(consuming).waiting, self._inbound)

    def resume(self, journal: Journal | None, recovered: Recovered | None) -> None:
        """Takes up where the last incarnation ended. Nothing was published, released or acknowledged before this."""
        self.journal = journal
        for link in self.links:
            restore(link, link is self.me, journal, recovered)
        self.cells[Field.CARRIED_ACK] = self.me.inbound.watermark
        self.cells[Field.CARRIED] = self.me.outbound.assigned
        self._behind = self._sending[:]
        self.claims.recover(self.links, journal, self.dead)
        # failpoint: claims-recovered
        self.overload.reset()
        self.cells[Field.DISK_FULL] = 0
        self.cells[Field.DEAD_LETTERS] = len(self.dead)
        self.cells[Field.JOURNAL_SEGMENTS] = 0 if journal is None else journal.segments
        # failpoint: links-restored
        self.progress()
        # failpoint: republished
        for link in self.links:
            if link.bell is not None:
                link.bell.ring()  # it may have died between a store and this

    # ------------------------------------------------------------------------------------------------ receiving
    def take(self, but: Collection[Link] = (), seconds: float = 0.0) -> list[Arrival]:
        """What waits at the worker, a bounded batch: first its own carried-over messages, then ring by ring. Nothing
        from the links in `but`. If there is nothing, what comes first within so many seconds."""
        arrivals: list[Arrival] = []
        me = self.me
        if me.outbound.published != me.outbound.assigned and me not in but:
            if not self._held or me.inbound.watermark < self._own_until:
                arrivals.extend(self._take_own())
            seconds = 0.0
        if self._held:
            return arrivals
        for index in self._waiting(seconds):
            link = self._receiving[index]
            if (self.overload.paused and not link.inside) or link in but:
                continue
            assert link.consuming is not None
            if link not in self._taken:
                self._taken.append(link)
            if link.lends:
                arrivals.extend(self._take_rows(link, link.consuming))
                continue
            for record in link.consuming.take_many(TAKE_RECORDS, TAKE_BYTES):
                # failpoint: records-taken
                first, count, route, flags = unpack_header(record)
                body = record[RUN.size :] if len(record) <= COPIED else memoryview(record)[RUN.size :]
                arrivals.append(Arrival(link, first, count, route, flags, body))
        return arrivals

    def _take_rows(self, link: Link, ring: Ring) -> Iterator[Arrival]:
        """Rows stay where they are, until `release`; everything else is copied."""
        views = ring.take_views(TAKE_RECORDS, TAKE_BYTES)
        if views and (left := ring.capacity // TAKE_SHARE - len(views[0])) >= len(views[0]) > TAKE_BYTES:
            views += ring.take_views(TAKE_RECORDS, left)
        for view in views:
            # failpoint: views-taken
            first, count, route, flags = unpack_header(view)
            body = view[RUN.size :]
            arrivals = body if route in self.rows and not flags & FLAG_COMMAND else memoryview(bytes(body))
            yield Arrival(link, first, count, route, flags, arrivals)

    def admit(self, arrival: Arrival) -> int:
        """How many messages of the arrival were consumed before; its whole count for a duplicate or a gap. BadRecord if
        no run can have these numbers: the ring is at fault, and no journal."""
        link = arrival.link
        try:
            verdict = link.inbound.admit(arrival.first, arrival.length)
        except ProtocolViolation as wrong:
            told = f"it is a run of {arrival.length} messages from {arrival.first} on, in the ring from {link.name!r}"
            raise BadRecord(told, RUN.size + len(arrival.body)) from wrong
        if verdict is NEW:
            return 0
        if verdict.kind is Kind.NEW:
            return verdict.skip
        if verdict is DUPLICATE:
            self.cells[Field.DUPLICATES] += arrival.length
        else:
            self._ask_resend(link)
        return arrival.length

    def release(self, but: Collection[Link] = ()) -> None:
        """All that was taken is committed, except for what came from the links in `but`: its space in the rings is free
        again, now or as soon as nothing is held any more."""
        self._left = but
        if self._held:
            return
        taken, self._taken = self._taken, [link for link in self._taken if link in but]
        for link in taken:
            if link in but:
                continue
            ring = link.consuming
            assert ring is not None
            ring.release()
            # failpoint: head-released
            if ring.get(Cell.STARVED) and link.bell is not None:
                link.bell.ring()

    def rollback(self) -> None:
        self.claims.withdraw()
        for link in self.links:
            link.inbound.rollback()

    def reserve(self, peer: int, size: int) -> RingPlace | None:
        """Room for the body of a run in the ring to this peer, where it comes next and there is no journal that it has
        to be in before; else None."""
        return self.places.reserve(self.links[peer], size) if self.journal is None else None

    def put_back(self) -> None:
        """What was taken and not released is new again."""
        self.rollback()
        self._taken.clear()
        for link in self._receiving:
            assert link.consuming is not None
            link.consuming.rewind()

    # ------------------------------------------------------------------------------------------------ committing
    def commit(
        self,
        runs: Sequence[EncodedRun] = (),
        states: Sequence[tuple[int, bytes]] = (),
        keys: Sequence[tuple[int, bytes, bytes | None]] = (),
        dead: Sequence[DeadLetter] = (),
        removed: Sequence[tuple[int, int]] = (),
        attempts: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """One transaction: what is staged on the inbound links, the runs, the state, dead letters that come and go (by
        peer and sequence number), attempts that are counted. Durable when this returns.

        JournalFull: the disk has no room for it. Nothing was committed, and no number was used; who staged rolls back.
        """
        me = self.me
        consumed = [link for link in self._taken if link.inbound.seen != link.inbound.watermark]
        if me.inbound.seen != me.inbound.watermark:
            consumed.append(me)
        if not (consumed or runs or states or keys or dead or removed or attempts):
            return
        self._check_sizes(runs)
        passes = not (dead or removed or attempts) and self._passes(consumed, runs)
        try:
            sends = self._number(runs)
        except JournalFull:
            self._refused()
            raise
        # failpoint: numbers-assigned
        position = 0
        if self.journal is not None:
            transaction = Transaction(
                consumed=[(link.index, link.inbound.seen) for link in consumed],
                sends=sends,
                states=list(states),
                keys=list(keys),
                dead=list(dead),
                removed=list(removed),
                attempts=list(attempts),
            )
            try:
                position = self.journal.append(transaction)
            except JournalFull:
                self._refused()
                raise
            # failpoint: transaction-appended
            if self.level == "power":
                self.journal.sync()
        # failpoint: transaction-synced
        if passes:
            self._move_straight(consumed, sends, position)
            return
        gone = self._bury(dead, removed) if dead or removed else ()
        self.claims.committed(dead, gone)
        self._enter_outbox(sends, position)
        self.claims.forget(gone)
        # failpoint: outbox-entered
        if self.journal is None:
            self._mark_unsafe(consumed, sends)
        for link in consumed:
            link.inbound.commit()
            self._changed |= link is me  # what was nowhere but in this process may be done
        # failpoint: watermarks-committed
        cells = self.cells
        cells[Field.COMMITS] += 1
        cells[Field.LAST_COMMIT_NS] = time.monotonic_ns()
        # failpoint: publish-before
        self.publish()
        # failpoint: publish-after
        self.claims.settle()
        self.acknowledge(consumed)

    def _passes(self, consumed: Sequence[Link], runs: Sequence[EncodedRun]) -> bool:
        """What is committed was caused by one peer, is at most one run for one peer, and nothing waits before it."""
        if len(consumed) != 1 or len(runs) > 1 or consumed[0] is self.me or not self.settled:
            return False
        for run in runs:
            if run.flags or len(run.peers) != 1:
                return False
            link = self.links[run.peers[0]]
            if link.producing is None or link.places or link.outbound.published != link.outbound.assigned:
                return False
        return True

    def _move_straight(self, consumed: Sequence[Link], sends: Sequence[Send], position: int) -> None:
        """What follows in `commit`, in the same order, for a transaction that passes: what it sends goes straight into
        its ring, and is in the outbox only if that is full."""
        now = time.monotonic_ns()
        cells = self.cells
        for send in sends:
            ((peer, first),) = send.edges
            link = self.links[peer]
            assert link.producing is not None
            link.mark(link.outbound.assigned, now)
            link.producing.set(Cell.COMMITTED, link.outbound.assigned)
            # failpoint: committed-told
            cells[Field.SENT] += send.count
        # failpoint: outbox-entered
        consumed[0].inbound.commit()
        # failpoint: watermarks-committed
        cells[Field.COMMITS] += 1
        cells[Field.LAST_COMMIT_NS] = now
        # failpoint: publish-before
        for send in sends:
            if not publish_straight(link, first, send, position):
                if self.journal is None:
                    self._mark_unsafe(consumed, sends)
                self._wait_in_outbox(link, first, send, position)
                self.publish()
        # failpoint: publish-after
        self.acknowledge(consumed)

    def _bury(self, dead: Sequence[DeadLetter], removed: Sequence[tuple[int, int]]) -> list[DeadLetter]:
        """Dead letters come and go; returns those that are gone."""
        places = set(removed)
        gone = [letter for letter in self.dead if (letter.peer, letter.seq) in places]
        self.dead = [letter for letter in self.dead if (letter.peer, letter.seq) not in places]
        self.dead.extend(dead)
        self.cells[Field.DEAD_LETTERS] = len(self.dead)
        return gone

    def _refused(self) -> None:
        """The disk has no room for the transaction: all is as before."""
        for link in self.links:
            link.outbound.rollback()
        self.claims.withdraw()
        if self.journal is not None:  # shared memory tells by itself, by the error, what it has no room for
            self.cells[Field.DISK_FULL] = 1

    def _check_sizes(self, runs: Sequence[EncodedRun]) -> None:
        """MessageTooLarge for what its ring could never carry: in the journal it would be found again and again."""
        for run in runs:
            if run.flags & FLAG_CLAIM:
                continue  # a ticket
            for peer in run.peers:
                link = self.links[peer]
                if len(run.body) > link.largest:
                    raise MessageTooLarge(f"run for {link.name!r}", len(run.body), link.largest)

    def _number(self, runs: Sequence[EncodedRun]) -> list[Send]:
        """Sequence numbers are used here, right before the append, and nowhere else."""
        links = self.links
        sends = []
        for run in runs:
            edges = [(peer, links[peer].outbound.assign(run.length)) for peer in run.peers]
            body = self.claims.stake(run.body, edges) if run.flags & FLAG_CLAIM else run.body
            sends.append(Send(run.route, run.length, run.flags, edges, body))  # type: ignore[arg-type]
        return sends

    def _mark_unsafe(self, consumed: Sequence[Link], sends: Sequence[Send]) -> None:
        """Level memory: which of the sends are nowhere but in this process until they are published or, the worker's
        own, consumed. The others have a cause that waits in a ring for its acknowledgement (`acknowledge`)."""
        me = self.me
        own = me in consumed
        external = len(consumed) > own
        if external:
            self._own_until = me.outbound.assigned
        # Own messages are a cause like any other, unless they have none themselves.
        caused = me.inbound.watermark >= me.unsafe if own else external
        for send in sends:
            for peer, _ in send.edges:
                link = self.links[peer]
                held = external if link is me else not link.inside
                if not (caused and held):
                    link.unsafe = link.outbound.assigned

    def _enter_outbox(self, sends: Sequence[Send], position: int) -> None:
        if not sends:
            return
        now = time.monotonic_ns()
        sent = 0
        for send in sends:
            sent += send.count
            for peer, first in send.edges:
                link = self.links[peer]
                link.mark(first + send.count - 1, now)
                if send.flags & FLAG_CLAIM:
                    self.claims.sent(link, first, send)
                self._wait_in_outbox(link, first, send, position)
                if link.producing is not None:
                    # By this the supervisor knows that all is quiet: a send counts before its cause is acknowledged.
                    link.producing.set(Cell.COMMITTED, link.outbound.assigned)
        # failpoint: committed-told
        self.cells[Field.CARRIED] = self.me.outbound.assigned
        self.cells[Field.SENT] += sent

    def _wait_in_outbox(self, link: Link, first: int, send: Send, position: int) -> None:
        link.outbound.committed(first, send.count, len(send.body) + ENTRY_BYTES, send, position)
        self._changed = True
        if link.producing is not None and link not in self._behind:
            self._behind.append(link)

    # ------------------------------------------------------------------------------------------------ moving
    def publish(self) -> bool:
        """Committed sends go into their rings as far as there is room. True if anything moved."""
        moved = False
        if self._behind:
            for link in self._behind:
                moved |= publish(link, self.journal)
            self._behind = [link for link in self._behind if link.outbound.published != link.outbound.assigned]
        if moved or self._changed:
            self._weigh()
        return moved

    def acknowledge(self, consumed: Iterable[Link]) -> bool:
        """The acknowledgement cells take the durable watermarks. At `memory`, not before all it caused is published and
        what of it was carried over is consumed: the cause, which stays in the ring, is all there is to remember it.

        False if that is still to come.
        """
        if self.journal is None:
            me = self.me
            if me.inbound.watermark > me.outbound.acked:
                self._forget(me, me.inbound.watermark)
                self.cells[Field.CARRIED_ACK] = me.inbound.watermark
            was_held, self._held = self._held, me.inbound.watermark < self._own_until
            for link in self._behind:
                if not link.inside:
                    self._held = True
            if self._held:
                return False
            if was_held:
                consumed = self.links
        for link in consumed:
            if link.consuming is not None:
                link.consuming.set(Cell.ACK, link.inbound.watermark)
                # failpoint: acknowledged
            elif link is self.me:
                self._forget(link, link.inbound.watermark)
                # failpoint: own-acknowledged
                self.cells[Field.CARRIED_ACK] = link.inbound.watermark
        return True

    def progress(self) -> bool:
        """Trims by acknowledgements, serves resends, publishes what found no room before. True if anything moved."""
        self._hear()
        moved = self.publish()
        if self._held and self.acknowledge(()):
            self.release(self._left)  # what is left was taken, and nobody else remembers it
            moved = True
        self.overload.look()
        return moved

    def _hear(self) -> None:
        """What receivers have acknowledged, and what they ask for again."""
        for index in type(self._outbound[0]).answered(self._outbound) if self._outbound else ():
            link = self._sending[index]
            ring, outbound = link.producing, link.outbound
            assert ring is not None
            acked = ring.get(Cell.ACK)
            # Without a journal what an earlier incarnation has published counts as acknowledged; its claims do not.
            if acked > outbound.acked or link.claims:
                self._forget(link, acked)
                # failpoint: outbox-trimmed
                link.forget_marks(acked)
                ring.set(Cell.OLDEST_NS, link.oldest_ns)
            asked = ring.get(Cell.RESEND_ASKED)
            if asked != link.resends_seen and self.journal is not None:
                outbound.rewind(ring.get(Cell.RESUME))
                self._behind = self._sending[:]
                self._changed = True
                link.resends_seen = asked
                ring.set(Cell.RESEND_SERVED, asked)

    def _forget(self, link: Link, acked: int) -> None:
        """What the peer has consumed for good leaves the outbox, and its claims are free."""
        published = link.outbound.published
        link.outbound.acknowledge(acked)
        if link.outbound.published != published:
            self._changed = True  # an earlier incarnation had published what was still to be
        if link.claims:
            self.claims.acknowledged(link, acked)
            self._changed = True

    # ------------------------------------------------------------------------------------------------ waiting
    def idle(self, but: Collection[Link] = ()) -> bool:
        """Nothing waits to be taken, but from the links in `but`, and nothing that waits to be published finds room. To
        be asked with the doorbell armed: what came just before that has rung in vain."""
        self._hear()
        if self.publish() or (self.claims.held and self.claims_are_free()):
            return False
        for index in self._waiting() if not self._held else ():
            link = self._receiving[index]
            if (link.inside or not self.overload.paused) and link not in but:
                return False
        return self.me.outbound.published == self.me.outbound.assigned or self.me in but

    @property
    def settled(self) -> bool:
        """Nothing of all that is committed waits for anything but its acknowledgement."""
        if self._behind or self._held or self.claims.pending:
            return False
        return self.me.inbound.watermark == self.me.outbound.assigned

    def claims_are_free(self) -> bool:
        """Whether receivers have consumed what claims are held for; else they ring once they have. To be asked with the
        doorbell armed."""
        freed = False
        for link in self._sending:
            if link.claims:
                assert link.producing is not None
                link.producing.set(Cell.STARVED, 1)
                freed |= link.producing.get(Cell.ACK) >= link.claims[0][0]
        return freed

    @property
    def paused(self) -> bool:
        """Overloaded: sources wait, and so does what enters the component from outside."""
        return self.overload.paused or self._held

    @property
    def can_leave(self) -> bool:
        """Whoever comes next finds everything: in the journal or, where there is none, in the rings."""
        return self.journal is not None or not self._at_risk()

    def _at_risk(self) -> bool:
        """Without a journal: something is in this process only, and no cause of it waits in a ring."""
        if self.me.inbound.watermark < self.me.unsafe:
            return True
        return any(link.outbound.published < link.unsafe for link in self._behind)

    @property
    def taken_by_others(self) -> bool:
        """Everything that was sent to other workers was consumed."""
        return all(link.outbound.acked == link.outbound.assigned for link in self._sending)

    @property
    def all_taken(self) -> bool:
        """And everything that was carried over, too."""
        return self.taken_by_others and self.me.inbound.watermark == self.me.outbound.assigned

    def _weigh(self) -> None:
        """What waits for the receivers has changed."""
        self._changed = False
        backlog, held = self.me.outbound.backlog_bytes, self.claims.held  # claims count until they are free
        for link in self._behind:
            backlog += link.outbound.backlog_bytes
        self.cells[Field.OUTBOX_BYTES] = backlog + held
        if self.journal is None:
            self.cells[Field.AT_RISK] = self._at_risk()
        self.overload.weigh(backlog, held, self._unconsumed, self._unconsumed_claims)

    def _unconsumed(self) -> int:
        return sum(link.outbound.assigned - link.outbound.acked for link in self.links)

    def _unconsumed_claims(self) -> int:
        return len({claim for link in self.links for _, claim in link.claims})

    def _ask_resend(self, link: Link) -> None:
        """A gap. Rings that are kept have none, so this is an alarm as well."""
        ring = link.consuming
        if ring is None:
            return
        self.cells[Field.GAPS] += 1
        if ring.get(Cell.RESEND_SERVED) == link.resends:
            link.resends += 1
            ring.set(Cell.RESUME, link.inbound.seen)
            ring.set(Cell.RESEND_ASKED, link.resends)
            assert link.bell is not None
            link.bell.ring()

    def _take_own(self) -> Iterator[Arrival]:
        """Messages that the worker carried over to itself."""
        outbound = self.me.outbound
        for _ in range(TAKE_RECORDS):
            if outbound.needs_refill:
                refill(self.me, self.journal)
            entry = outbound.peek()
            if entry is None:
                return
            outbound.pop()
            self._changed = True
            # failpoint: own-taken
            send: Send = entry.payload
            yield Arrival(self.me, entry.first, entry.count, send.route, send.flags, send.body)
