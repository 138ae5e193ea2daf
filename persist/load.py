"""Reads a whole journal and says what it means: the acting half of recovery. Changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from zlib import crc32

import msgspec

from persist.errors import DamagedJournal, UnknownName
from persist.files import CHUNK, Directory
from persist.format import BadFrame, Send, Snapshot, decode_sends, decode_transaction
from persist.names import current_peers, current_routes
from persist.reader import Segment, SegmentReader, Survey, survey
from persist.recovery import Fold, Outbox, Recovered, Route, by_name, name

READ_ATTEMPTS = 20  # a live writer may delete a segment between the listing and the reading, but not for ever


def read(directory: str | os.PathLike[str]) -> Recovered:
    """What the journal holds now. Takes no lock and does not mind a live writer, whose last frame may show as torn."""
    opened = Directory(directory, create=False)
    try:
        before = ""
        for _ in range(READ_ATTEMPTS - 1):
            try:
                return recover(opened, survey(opened))
            except FileNotFoundError:
                continue
            except DamagedJournal as damage:
                # What is written meanwhile may look like that; what two readings agree on is there.
                if str(damage) == before:
                    raise
                before = str(damage)
        return recover(opened, survey(opened))
    finally:
        opened.close()


def recover(directory: Directory, found: Survey) -> Recovered:
    """Reads the last segment, and of those before it what is not acknowledged. All that is read is verified."""
    recovered = Recovered(torn=found.torn)
    if not found.segments:
        return recovered
    outbox = Outbox(_acked(found))
    for segment, after in found.pairs():
        peers = segment.snapshot.peers
        reader = SegmentReader(directory, segment, last=segment.number == found.last)
        position = segment.first_position
        try:
            if after is None:
                fold = Fold(segment.epoch, segment.snapshot)
                for frame in reader:
                    position = frame.position
                    transaction = decode_transaction(frame.body)
                    fold.apply(transaction)
                    if transaction.sends:
                        outbox.see(position, peers, transaction.sends)
                recovered = fold.result(outbox)
                recovered.position = reader.end
                recovered.torn = found.torn or reader.torn
                continue
            begin, end = _assigned(segment), _assigned(after)
            if not outbox.wants(begin, end):
                continue
            if outbox.is_whole(begin, end) and _is_intact(directory, segment, after.snapshot.previous_crc):
                outbox.see_all(segment.body, segment.end - segment.body, begin, end)
                continue
            for frame in reader:
                position = frame.position
                outbox.see(position, peers, decode_sends(frame.body))
        except (msgspec.DecodeError, BadFrame) as error:
            offset = segment.offset(position)
            raise DamagedJournal(segment.path, offset, segment.size - offset, str(error)) from None
    recovered.routes = {segment.number: tuple(segment.snapshot.routes) for segment in found.segments}
    return recovered


def _is_intact(directory: Directory, segment: Segment, checksum: int) -> bool:
    """Whether the whole segment is as it was written: a fraction of the work of looking at each frame, and no less."""
    if not checksum:
        return False
    file = directory.open(segment.name)
    try:
        found = 0
        for offset in range(0, segment.size, CHUNK):
            found = crc32(file.read(min(CHUNK, segment.size - offset), offset), found)
    finally:
        file.close()
    return found == checksum


def sends_in(
    directory: Directory, segment: Segment, start: int, names: Snapshot, peer: int, after_seq: int
) -> Iterator[tuple[int, Send]]:
    """(position, send) of what one segment has for `peer`, from the frame at `start` on, in terms of `names`."""
    table = segment.snapshot
    wanted = names.peers[peer]
    if wanted not in table.peers:
        return
    here = table.peers.index(wanted)
    known = {route: index for index, route in enumerate(current_routes(names))}
    routes = [known.get(route) for route in table.routes]
    for position, sends in _sends(directory, segment, start):
        for send in sends:
            for index, first in send.edges:
                if index == here and first + send.count - 1 > after_seq:
                    route = name(routes, send.route)
                    if route is None:
                        raise UnknownName({_label(table.routes[send.route]): send.count})
                    yield position, Send(route, send.count, send.flags, [(peer, first)], send.body)


def refuse_unknown(directory: Directory, found: Survey, snapshot: Snapshot) -> None:
    """UnknownName if a message above the snapshot's `acked` is for a peer, or by a route, that it does not name."""
    peers, routes = set(current_peers(snapshot)), set(current_routes(snapshot))
    if all(peers.issuperset(s.snapshot.peers) and routes.issuperset(s.snapshot.routes) for s in found.segments):
        return  # nothing went away, so nothing needs to be read
    acked = by_name(snapshot.peers, snapshot.acked)
    outbox = Outbox(acked)
    names: Counter[str] = Counter()
    for segment, after in found.pairs():
        if after is not None and not outbox.wants(_assigned(segment), _assigned(after)):
            continue
        table = segment.snapshot
        for _, sends in _sends(directory, segment, segment.body, last=segment.number == found.last):
            for send in sends:
                for index, first in send.edges:
                    peer = name(table.peers, index)
                    pending = first + send.count - 1 - max(first - 1, acked.get(peer, 0))
                    if pending > 0 and peer not in peers:
                        names[f"peer {peer}"] += pending
                    if pending > 0 and name(table.routes, send.route) not in routes:
                        names[_label(table.routes[send.route])] += pending
    if names:
        raise UnknownName(names)


def _sends(
    directory: Directory, segment: Segment, start: int, *, last: bool = False
) -> Iterator[tuple[int, list[Send]]]:
    position = start
    try:
        for frame in SegmentReader(directory, segment, last=last, start=start):
            position = frame.position
            yield position, decode_sends(frame.body)
    except (msgspec.DecodeError, BadFrame) as error:
        offset = segment.offset(position)
        raise DamagedJournal(segment.path, offset, segment.size - offset, str(error)) from None


def _label(route: Route) -> str:
    return f"route {route[0]} -> {route[1]}"


def _assigned(segment: Segment) -> dict[str, int]:
    return by_name(segment.snapshot.peers, segment.snapshot.assigned)


def _acked(found: Survey) -> dict[str, int]:
    """As of the last snapshot; and segments that were deleted held nothing unacknowledged, whatever was known since."""
    last = found.segments[-1].snapshot
    acked = by_name(last.peers, last.acked)
    for peer, assigned in _assigned(found.segments[0]).items():
        acked[peer] = max(assigned, acked.get(peer, 0))
    return acked
