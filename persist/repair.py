"""Makes a journal that recovery refuses usable again, and says what that costs.

Contract
- Under the journal's lock; before anything is changed, all of the directory is copied and synced. What is removed here
  is there, byte for byte. Newer formats, foreign files and journals in use are refused untouched.
- Nothing that was committed is lost without `discard`: DiscardNeeded says, exactly, what would be.
- Afterwards `check` finds nothing and `Journal.open` works. A repair that was interrupted leaves a journal that
  recovery refuses; the next one begins again from the copy.

What is done, the first that fits:

nothing   Nothing is damaged. A torn tail is recovery's affair.
numbers   Nothing is damaged, but other ends have more than is written here (`elsewhere`): what was committed is gone
          without a trace, as a torn tail is. With `discard`, the numbers go on behind what they have.
front     Each segment begins with all of the state, so damage in front of a good one costs only what is still pending
          there. If nothing is, the segments up to the damage are set aside, as if they had been trimmed. Loses history.
forward   Something is pending there, but nothing that cannot be read: all stays up to the damage; then come the
          messages from behind it with their old numbers, and one record that brings the newest state. Loses history.
back      What is pending, or the newest state, cannot be read: with `discard`, back to the last transaction before the
          first damage. Later segments are removed.
front     With `discard`, if there is no state before the damage to go back to: the newest state stays, and what was
          pending in front of it is lost.

Why back, where messages cannot be read, and not the newest state with a hole in its outbox: their receivers would wait
for them for ever. And why the numbers do not simply go back, too: their receivers may have them, and would silently
take what comes next for duplicates. So, to each peer:
- If it is known what the peer has (`elsewhere`), the numbers go on behind exactly that: nothing is used twice and
  nothing is missed. What it has of the messages in between has a record, LOST if it cannot be read.
- Otherwise the numbers go on where they were, as far as that can be read. The messages in between are sent, unless the
  peer has them; what cannot be read is LOST: one record that has no body and counts as acknowledged. A peer that has
  had all of that goes on as if nothing had happened; one that has not reports a gap. Neither is silently wrong.
From each peer, the watermark goes on behind what that peer no longer has, if that is known; otherwise a peer that
cannot send again what was discarded makes a gap, which is reported.

Segments and epochs go on, too. Positions behind the damage are given out again: whoever follows the journal must begin
anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

from persist.check import check
from persist.errors import PersistError
from persist.files import Directory
from persist.format import TornTail
from persist.history import Record
from persist.history_errors import CannotRepair, DiscardNeeded
from persist.lock import DirectoryLock
from persist.recovery import Recovered, by_name
from persist.salvage import Piece, before, behind, examine
from persist.setting_aside import copy_aside, remove_marker, restore, write_marker
from persist.splice import Names, Splice, perform

Action = Literal["nothing", "numbers", "front", "forward", "back"]


AHEAD = "other ends have more than the journal"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the other end of a link durably has, from its own journal, while it is not running.

    received  the last of our messages that it has consumed
    released  the last of its messages that it may have let go of, because we had consumed it
    """

    received: int = 0
    released: int = 0


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done. `losses`: what was committed and is gone, in words; `history`: what is no longer there to be
    replayed, and nobody needs; `original`: where the copy is, empty if none was needed."""

    directory: str
    action: Action
    damage: tuple[PersistError, ...] = ()
    losses: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    original: str = ""
    torn: TornTail | None = None


@dataclass(slots=True)
class _Plan:
    action: Action
    remove: list[Piece]
    cut: Piece | None = None  # at its fault, if it has one
    splice: Splice | None = None
    losses: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)


def repair(
    directory: str | os.PathLike[str],
    *,
    discard: bool = False,
    elsewhere: Mapping[str, Elsewhere] | None = None,
    copy_to: str | os.PathLike[str] | None = None,
) -> Repair:
    """Repair the journal; the module says how. `elsewhere`: for each peer of which it is known, what it has; `copy_to`:
    where the copy of the directory goes, which must not exist, else beside it, `<directory>.original-<UTC time>`.

    JournalLocked, NewerFormat, NotAJournal, UnsafeDirectory, DiscardNeeded and CannotRepair without `original` have
    changed nothing.
    """
    opened = Directory(directory, create=False)
    original = ""
    try:
        lock = DirectoryLock(opened.path, opened.descriptor)
        try:
            restore(opened)
            pieces, torn = examine(opened)
            damage = tuple(piece.fault for piece in pieces if piece.fault is not None)
            plan = _plan(opened, pieces, elsewhere or {})
            if torn is not None and torn.offset == 0 and plan.splice is not None:
                plan.remove.insert(0, Piece(0, os.path.basename(torn.file), None))
            if plan.losses and not discard:
                raise DiscardNeeded(opened.path, str(damage[0]) if damage else AHEAD, plan.losses)
            plan.losses += _gone_before(pieces, elsewhere or {})
            if plan.action != "nothing":
                original = copy_aside(opened, copy_to)
                write_marker(opened, original)
                _remove(opened, plan)
        finally:
            lock.release()
        if plan.splice is not None:
            perform(opened.path, plan.splice)  # takes the lock itself; the marker keeps all others out
        if original:
            remove_marker(opened)
    finally:
        opened.close()
    report = check(directory)
    if not report.ok:
        raise CannotRepair(report.directory, str([*report.faults, *report.gaps][0]), original)
    return Repair(report.directory, plan.action, damage, tuple(plan.losses), tuple(plan.history), original, torn)


def _plan(directory: Directory, pieces: Sequence[Piece], elsewhere: Mapping[str, Elsewhere]) -> _Plan:
    if not pieces and not any(known.received or known.released for known in elsewhere.values()):
        return _Plan("nothing", [])  # it was never written
    first = next((index for index, piece in enumerate(pieces) if piece.segment is not None), None)
    if first is None:
        reason = "no snapshot is left to begin with. Put back a copy of it, or begin anew with all of its peers"
        raise CannotRepair(directory.path, reason)
    whole = next((index for index in range(len(pieces), 0, -1) if pieces[index - 1].fault is not None), 0)
    suffix = pieces[whole:]  # from here on, all is good
    received = _received(pieces, elsewhere)
    if suffix and not (whole and _pending(suffix[0], received)):
        plan = _Plan("front", [*pieces[:whole]], history=_transactions(pieces[:whole]))
        return _numbered(directory, suffix, plan, received, elsewhere)
    if first:
        # There is nothing to go back to before the damage: what is pending there is lost, whatever is done.
        rest = pieces[first:]
        plan = _plan(directory, rest, elsewhere)
        if plan.action in {"nothing", "numbers"}:
            plan.action = "front"
        plan.remove += pieces[:first]
        lost = _pending(rest[0], received)
        plan.losses += [f"{_messages(*span)} to {peer}, if not received by it" for peer, span in lost.items()]
        plan.history += _transactions(pieces[:first])
        return plan
    damaged = next(index for index, piece in enumerate(pieces) if piece.fault is not None)
    base = damaged if pieces[damaged].segment is not None else damaged - 1
    if suffix:
        found, losses = _splice(directory, pieces, base, suffix[-1], received, elsewhere)
        if not found.missing:
            history = _transactions(pieces[base:], behind_only=True)
            return _Plan("forward", [*pieces[:base:-1]], pieces[base], found, losses, history)
    return _back(directory, pieces, base, received, elsewhere)


def _numbered(
    directory: Directory,
    pieces: Sequence[Piece],
    plan: _Plan,
    received: Mapping[str, int],
    elsewhere: Mapping[str, Elsewhere],
) -> _Plan:
    """The plan for a journal that is good from some segment on, with what the other ends have beyond it."""
    found, plan.losses = _splice(directory, pieces, len(pieces) - 1, pieces[-1], received, elsewhere)
    if plan.losses:
        plan.splice = found
    if not plan.remove:
        plan.action = "numbers" if plan.losses else "nothing"
    return plan


def _back(
    directory: Directory,
    pieces: Sequence[Piece],
    base: int,
    received: Mapping[str, int],
    elsewhere: Mapping[str, Elsewhere],
) -> _Plan:
    state = _state(pieces[base])
    numbers, watermarks = dict(state.assigned), dict(state.watermarks)
    for piece in pieces[base:]:
        numbers |= piece.numbers
        watermarks |= piece.watermarks
    unknown = {peer: last for peer, last in numbers.items() if peer not in elsewhere}
    found, _ = _splice(directory, pieces, base, pieces[base], received, elsewhere, unknown)
    losses = [str(piece.fault) for piece in pieces[base:] if piece.fault is not None]
    losses += _transactions(pieces[base:], behind_only=True)
    for peer, last in watermarks.items():
        if last > (was := state.watermarks.get(peer, 0)):
            gone = found.target.watermarks.get(peer, 0)
            again = f"{peer} no longer has those up to {gone}" if gone > was else f"{peer} must send them again"
            losses.append(f"what {_messages(was + 1, last)} from {peer} did; {again}")
    final = found.final()
    for peer, last in numbers.items():
        if last > (now := final.assigned.get(peer, 0)):
            losses.append(f"{_messages(now + 1, last)} to {peer}, not received by it")
    # Acknowledgements have no holes: what stands in front of messages that are lost cannot be sent either.
    for peer, last in {peer: last for peer, _, last in found.missing}.items():
        losses.append(f"{_messages(received.get(peer, 0) + 1, last)} to {peer}, if not received by it")
    return _Plan("back", [*pieces[:base:-1]], pieces[base], found, losses)


def _splice(
    directory: Directory,
    pieces: Sequence[Piece],
    base: int,
    target: Piece,
    received: Mapping[str, int],
    elsewhere: Mapping[str, Elsewhere],
    upto: Mapping[str, int] | None = None,
) -> tuple[Splice, list[str]]:
    """What leads from the base to the state of the target, with the numbers at least up to `upto`; and what other ends
    have beyond the target."""
    names = Names.of([piece.segment for piece in pieces if piece.segment is not None])
    state = deepcopy(_state(target))
    numbers = {peer: max(last, (upto or {}).get(peer, 0)) for peer, last in {**(upto or {}), **state.assigned}.items()}
    beyond = []
    for peer, known in elsewhere.items():
        last, watermark = state.assigned.get(peer, 0), state.watermarks.get(peer, 0)
        if peer in names.peers and known.received > last:
            numbers[peer] = known.received
            beyond.append(f"{_messages(last + 1, known.received)} to {peer}, received by it")
        if peer in names.peers and known.released > watermark:
            state.watermarks[peer] = known.released
            beyond.append(f"what {_messages(watermark + 1, known.released)} from {peer} did; {peer} no longer has them")
    epoch = max(piece.segment.epoch for piece in pieces if piece.segment is not None)
    found = Splice(names, _state(pieces[base]), state, epoch, received)
    found.build(_later(directory, pieces, base), numbers)
    return found, beyond


def _state(piece: Piece) -> Recovered:
    assert piece.state is not None
    return piece.state


def _received(pieces: Sequence[Piece], elsewhere: Mapping[str, Elsewhere]) -> dict[str, int]:
    """What is known of what the peers have. A segment that was trimmed held nothing that was not acknowledged."""
    found: dict[str, int] = {}
    first = pieces[0].segment
    tables = [by_name(first.snapshot.peers, first.snapshot.assigned)] if first is not None else []
    tables += [by_name(s.snapshot.peers, s.snapshot.acked) for piece in pieces if (s := piece.segment) is not None]
    tables.append({peer: known.received for peer, known in elsewhere.items()})
    for table in tables:
        for peer, last in table.items():
            found[peer] = max(last, found.get(peer, 0))
    return found


def _gone_before(pieces: Sequence[Piece], elsewhere: Mapping[str, Elsewhere]) -> list[str]:
    """What peers still need of segments that are not there: no repair brings that back, and none makes it worse."""
    first = pieces[0].segment if pieces else None
    if first is None:
        return []
    received = {peer: known.received for peer, known in elsewhere.items()}
    pending = {peer: span for peer, span in _pending(pieces[0], received).items() if peer in elsewhere}
    return [f"{_messages(*span)} to {peer}, if not received by it" for peer, span in pending.items()]


def _pending(piece: Piece, received: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Peer -> first and last number of what was sent before the segment and is not known to be received."""
    assert piece.segment is not None
    snapshot = piece.segment.snapshot
    assigned = by_name(snapshot.peers, snapshot.assigned)
    return {peer: (received.get(peer, 0) + 1, last) for peer, last in assigned.items() if last > received.get(peer, 0)}


def _later(directory: Directory, pieces: Sequence[Piece], base: int) -> Iterator[Record]:
    """All that can be read behind the base."""
    yield from behind(directory, pieces[base])
    for piece in pieces[base + 1 :]:
        yield from before(directory, piece)
        yield from behind(directory, piece)


def _transactions(pieces: Sequence[Piece], *, behind_only: bool = False) -> list[str]:
    """How many records that can be read go with these segments, or with all of them but what stands before the first
    damage."""
    found = []
    for index, piece in enumerate(pieces):
        count = piece.behind + (0 if behind_only and not index else piece.records)
        if count:
            found.append(f"{count} transaction{'s' * (count > 1)} of segment {piece.number}")
    return found


def _messages(first: int, last: int) -> str:
    return f"message {first}" if first == last else f"messages {first} to {last}"


def _remove(directory: Directory, plan: _Plan) -> None:
    for piece in plan.remove:
        with contextlib.suppress(FileNotFoundError):  # that one is missing is what is being repaired
            directory.unlink(piece.name)
    if plan.cut is not None and plan.cut.fault is not None and plan.cut.segment is not None:
        with closing(directory.open(plan.cut.name, writable=True)) as file:
            file.truncate(plan.cut.segment.offset(plan.cut.end))
            file.fdatasync()
    directory.sync()
