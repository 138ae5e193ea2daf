"""Claims at the levels `process` and `power`: files beside the journal of their owner, `NUMBER.claim`.

The file is whole, and at `power` on the disk, before the append that sends its ticket. A number is used once: the
owner's epoch, which grows with every incarnation, is in it. A claim that its owner's journal does not name is removed
at recovery: it is of a transaction that never was, or was consumed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from actors.claims import Claims
from actors.codec import FLAG_CLAIM
from actors.naming import NAME
from actors.tickets import Large, Ticket, ticket_of
from persist.errors import JournalFull
from persist.files import NO_ROOM, Directory
from persist.format import DeadLetter

if TYPE_CHECKING:
    from actors.links import Link
    from persist.journal import Journal

SUFFIX = ".claim"
WRITE_BYTES = 1 << 26  # at once; Linux takes less than 2 GiB


class DiskClaims(Claims):
    """In the directory of the owner's journal; those of the others are beside it. `durable`: survive power loss."""

    def __init__(self, owner: str, directory: str | os.PathLike[str], epoch: int, durable: bool) -> None:
        super().__init__(owner)
        self._directory = Directory(directory)
        self._next = epoch << 32
        self._durable = durable

    # ------------------------------------------------------------------------------------------------ sending
    def _make(self, large: Large, edges: Sequence[tuple[int, int]]) -> Ticket:
        number = self._number()
        data = memoryview(large.whole())
        name = _name(number)
        try:
            file = self._directory.create(name)
            try:
                # failpoint: claim-created
                at = 0  # nothing is reserved: a file that has no room is met by the write, and goes at once
                while at < len(data):
                    at += file.write(data[at : at + WRITE_BYTES], at)
                # failpoint: claim-written
                if self._durable:
                    file.fdatasync()
                    self._directory.sync()
                # failpoint: claim-synced
            finally:
                file.close()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._directory.unlink(name)
            if error.errno in NO_ROOM:
                raise JournalFull(self._directory.locate(name), len(data), 0) from None
            raise
        return Ticket(self.owner, number, 0, len(data), crc32(data) if self._durable else 0, large.codec)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _remove(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._directory.unlink(_name(number))

    def close(self) -> None:
        self._directory.close()

    # ------------------------------------------------------------------------------------------------ receiving
    def _open(self, ticket: Ticket) -> memoryview:
        descriptor = os.open(self._path(ticket), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size != ticket.size:
                raise ValueError(f"it has {size} bytes instead of {ticket.size}")
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        view = memoryview(mapped)
        if self._durable and crc32(view) != ticket.checksum:
            raise ValueError("its checksum does not match")
        return view

    def _keep(self, ticket: Ticket) -> Ticket:
        """By a hard link: where the sender has not freed it yet, which it has not before the commit."""
        number = self._number()
        os.link(self._path(ticket), _name(number), dst_dir_fd=self._directory.descriptor, follow_symlinks=False)
        # failpoint: claim-linked
        if self._durable:
            self._directory.sync()
        return ticket._replace(owner=self.owner, number=number)

    def _path(self, ticket: Ticket) -> str:
        if ticket.owner == self.owner:
            return self._directory.locate(_name(ticket.number))
        if not NAME.fullmatch(ticket.owner):
            raise OSError(errno.EINVAL, "its owner has no name that is one")
        return os.path.join(os.path.dirname(self._directory.path), ticket.owner, _name(ticket.number))

    # ------------------------------------------------------------------------------------------------ recovery
    def recover(self, links: Sequence[Link], journal: Journal | None, dead: Iterable[DeadLetter]) -> None:
        there = {int(name.removesuffix(SUFFIX), 16) for name in self._directory.list() if _is_claim(name)}
        if not there or journal is None:
            return
        for link in links:
            if link.outbound.acked == link.outbound.assigned:
                continue
            for _, send in journal.sends(link.index, link.outbound.acked, 0):
                if send.flags & FLAG_CLAIM:
                    self.hold(link, send.edges[0][1], ticket_of(send.body))
        self._count(dead, 1)
        for number in there.difference(self._sizes):
            self._remove(number)


def _name(number: int) -> str:
    return f"{number:016x}{SUFFIX}"


def _is_claim(name: str) -> bool:
    stem = name.removesuffix(SUFFIX)
    return stem != name and len(stem) == 16 and all(character in "0123456789abcdef" for character in stem)


def beginning(ticket: Ticket, journal: str | os.PathLike[str], size: int) -> bytes:
    """The first bytes of a dead letter's message, for whoever looks from outside; nothing if it is not there."""
    try:
        descriptor = os.open(os.path.join(journal, _name(ticket.number)), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        return file.read(size)
