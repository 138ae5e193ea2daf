"""Claims: where messages lie that are too large for a ring, from their commit until the last receiver consumed them.

A claim is a file that its owner, the peer that sent the message, makes in the transaction that sends it, before the
append; what is sent is a ticket (`actors.tickets`). Every edge of the send holds the claim until the receiver's
acknowledgement has passed the message, and then the owner frees it. A receiver maps the file, read-only; what it has
mapped is there for as long as it looks at it, whatever becomes of the file.

A dead letter holds a claim of its own, made from the sender's without copying, until it is dropped or, requeued, was
consumed. Which claims are held is in no record of its own: after a crash it follows from the outbox and the dead
letters, and what neither of them names is removed.

Here is the accounting; `actors.claims_on_disk` and `actors.claims_in_memory` are where claims are. Used by one thread
at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from actors.errors import BadRecord
from actors.tickets import ALONE, Large, Ticket, ticket_in, ticket_of
from persist.errors import JournalFull
from persist.files import NO_ROOM
from persist.format import DeadLetter, Send

if TYPE_CHECKING:
    from actors.links import Link
    from persist.journal import Journal


class Claims:
    """Of the peer `owner`. By itself it has no place for any: a base, and what an endpoint without claims has.

    `held`: bytes of those that receivers have not consumed.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.held = 0
        self._sizes: dict[int, int] = {}  # of all that are there, by number
        self._edges: Counter[int] = Counter()  # sends that hold it
        self._letters: Counter[int] = Counter()  # dead letters that do
        self._fresh: list[int] = []  # made for the transaction at hand
        self._tickets: dict[bytes, Ticket] = {}  # theirs, by the run that they are sent as
        self._laid: set[int] = set()  # those of them that nothing has been staked for

    # ------------------------------------------------------------------------------------------------ to be overridden
    def _make(self, large: Large, edges: Sequence[tuple[int, int]]) -> Ticket:
        """A new claim. JournalFull if there is no room, and nothing is left then."""
        raise BadRecord(f"{self.owner} has no place for claims", large.size)

    def _lay(self, large: Large) -> Large:
        """The same in a claim of which nobody knows, where that is quicker than to copy it now and once more later."""
        return large.copied()

    def _seal(self, large: Large, edges: Sequence[tuple[int, int]]) -> Ticket:
        """What has been laid becomes a claim; by itself nothing ever is."""
        return self._make(large, edges)

    def _open(self, ticket: Ticket) -> memoryview:
        raise BadRecord("there are no claims here", ticket.size)

    def _keep(self, ticket: Ticket) -> Ticket:
        """The same once more, as a claim of this owner."""
        return ticket

    def _remove(self, number: int) -> None: ...

    def recover(self, links: Sequence[Link], journal: Journal | None, dead: Iterable[DeadLetter]) -> None:
        """Take up what the last incarnation left: hold what is still to be consumed, remove the rest. The links stand
        where they will go on."""

    @property
    def pending(self) -> bool:
        """There is something for `committed` or `settle` to do."""
        return bool(self._fresh or self._laid)

    def settle(self) -> None:
        """Before anything is acknowledged: what was redeemed until now will not be redeemed again, but for what comes
        again."""

    def close(self) -> None: ...

    # ------------------------------------------------------------------------------------------------ receiving
    def redeem(self, ticket: Ticket) -> memoryview:
        """The message, encoded; read-only, and there for as long as anybody looks at it. BadRecord if it is not there,
        or not what the ticket says."""
        try:
            found = self._open(ticket)
        except (OSError, ValueError) as error:
            raise BadRecord(
                f"claim {ticket.number:x} of {ticket.owner} cannot be read: {error}", ticket.size
            ) from error
        # failpoint: claim-redeemed
        return found

    def keep(self, body: bytes) -> bytes:
        """A dead letter's body, by which its message stays although its sender forgets it. Held from the commit on.
        Raises JournalFull."""
        ticket = ticket_in(body)
        if ticket is None:
            return body
        try:
            mine = self._keep(ticket)
        except FileNotFoundError:
            return body  # there is nothing left to keep
        except OSError as error:
            if error.errno in NO_ROOM:
                raise JournalFull(f"the claims of {self.owner}", ticket.size, 0) from None
            raise
        self._fresh.append(mine.number)
        self._sizes[mine.number] = mine.size
        # failpoint: claim-kept
        return mine.element()

    # ------------------------------------------------------------------------------------------------ sending
    def lay(self, large: Large) -> Large:
        """A message that was sent in the transaction at hand. What becomes of it there, is told by `stake`, or not."""
        laid = self._lay(large)
        if laid.claim:
            self._fresh.append(laid.claim)
            self._laid.add(laid.claim)
            self._sizes[laid.claim] = laid.size
        # failpoint: claim-laid
        return laid

    def stake(self, body: bytes | Large, edges: Sequence[tuple[int, int]]) -> bytes:
        """The run of the ticket for a message that is about to be committed for these (peer, sequence number).

        JournalFull: there is no room; `withdraw` then.
        """
        if not isinstance(body, Large):
            return body  # a dead letter's that goes on
        if body.claim in self._laid:
            self._laid.discard(body.claim)
            ticket = self._seal(body, edges)
        else:
            ticket = self._make(body, edges)
            self._fresh.append(ticket.number)
            self._sizes[ticket.number] = ticket.size
        # failpoint: claim-made
        run = ALONE + ticket.element()
        self._tickets[run] = ticket
        return run

    def withdraw(self) -> None:
        """The transaction was not committed."""
        fresh, self._fresh = self._fresh, []
        self._laid.clear()
        self._tickets.clear()
        for number in fresh:
            self._free(number)

    def committed(self, dead: Iterable[DeadLetter], removed: Iterable[DeadLetter]) -> None:
        """The transaction was; its sends follow, by `sent`."""
        if self._fresh:
            self._fresh.clear()
        if self._laid:  # for handlers of this worker, which have handled it
            laid, self._laid = self._laid, set()
            for number in laid:
                self._free(number)
        if dead or removed:
            self._count(dead, 1)
            self._count(removed, -1)

    def _count(self, letters: Iterable[DeadLetter], by: int) -> None:
        for letter in letters:
            ticket = ticket_in(letter.body)
            if ticket is not None and ticket.owner == self.owner:
                self._sizes.setdefault(ticket.number, ticket.size)
                self._letters[ticket.number] += by

    def sent(self, link: Link, first: int, send: Send) -> None:
        """A committed send, flagged as a claim, holds it until the peer has acknowledged `first`."""
        self.hold(link, first, self._tickets.get(send.body) or ticket_of(send.body))

    def hold(self, link: Link, seq: int, ticket: Ticket) -> None:
        number = ticket.number
        self._sizes.setdefault(number, ticket.size)
        if not self._edges[number]:
            self.held += ticket.size
        self._edges[number] += 1
        link.claims.append((seq, number))

    def acknowledged(self, link: Link, watermark: int) -> None:
        claims = link.claims
        while claims and claims[0][0] <= watermark:
            _, number = claims.popleft()
            self._edges[number] -= 1
            if not self._edges[number]:
                self.held -= self._sizes[number]
                self._free(number)

    def forget(self, letters: Iterable[DeadLetter]) -> None:
        """Those that are gone, once all is counted that may still hold their claims. The end of a commit."""
        self._tickets.clear()
        for letter in letters:
            ticket = ticket_in(letter.body)
            if ticket is not None and ticket.owner == self.owner:
                self._free(ticket.number)

    def _free(self, number: int) -> None:
        if not self._edges[number] and not self._letters[number] and number in self._sizes:
            del self._sizes[number], self._edges[number], self._letters[number]
            # failpoint: claim-freeing
            self._remove(number)
            # failpoint: claim-freed
