"""What must hold, checked against what is on the (simulated) disks, by nothing that the runtime itself uses.

    I1  each message of an edge is consumed by at most one transaction
    I2  consumed are exactly 1 to W, without gaps
    I3  what was consumed is what the sender has committed under that number; numbers in an outbox are 1 to n
    I4  state and sends of a transaction are those of handling exactly what it consumed
    I5  forgotten by the sender implies durably consumed by the receiver
    I6  no transaction of an older epoch behind one of a newer
    I8  exactly the poison message becomes a dead letter, after its attempts

The oracle reads every transaction as it is written. It also knows what power loss took away again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import msgspec

from actors.codec import FLAG_REPLY, RunCodec
from actors.plan import GATEWAY, Route
from persist.format import (
    FRAME_HEADER,
    SEGMENT_HEADER,
    SNAPSHOT,
    Snapshot,
    Transaction,
    decode_snapshot,
    decode_transaction,
)
from tests.model.disk import Store
from tests.model.topologies import Item, Record, Scene

_FRAME = struct.Struct("<IIB3xI")
codec = cache(RunCodec)  # pure, and the greater part of what an incarnation costs
_record = msgspec.msgpack.Decoder(Record).decode


class Violation(BaseException):
    """An invariant does not hold. Not an Exception: the runtime must not take it for a handler's."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


@dataclass
class Entry:
    """A worker as it is after one of its transactions."""

    file: str = ""
    end: int = 0
    frame: bytes = b""
    epoch: int = 0
    watermarks: dict[str, int] = field(default_factory=dict)
    consumed: dict[str, tuple[int | None, ...]] = field(default_factory=dict)  # peer -> uids; None: a dead letter
    outs: dict[str, tuple[int, ...]] = field(default_factory=dict)  # peer -> uids sent to it
    records: dict[str, tuple[Item, ...]] = field(default_factory=dict)  # handler -> what it has handled
    loops: dict[str, int] = field(default_factory=dict)
    dead: int = 0


class Ledger:
    """The transactions of one peer. `synced`: how many of them survive power loss."""

    def __init__(self) -> None:
        self.entries = [Entry()]
        self.synced = 1

    @property
    def last(self) -> Entry:
        return self.entries[-1]


class Oracle:
    def __init__(self, scene: Scene) -> None:
        plan = scene.plan
        self.scene, self.plan = scene, plan
        self.power = plan.level == "power"
        self.ledgers = {peer: Ledger() for peer in plan.peers}
        self.gone: set[tuple[str, str]] = set()  # (peer, segment) that were trimmed
        self._routes = {
            (route.source, route.message.__name__): route for route in plan.routes if route.message is not None
        }
        self._codecs = {route.id: codec(route.message) for route in plan.routes if route.message is not None}
        self._poison: set[int] = set()  # uids of poisonous messages, as they were committed
        self.transactions = 0

    # ------------------------------------------------------------------------------------------------ what happens
    def wrote(self, owner: str, name: str, data: bytes, end: int) -> None:
        """A write to a segment is complete."""
        frame = data[SEGMENT_HEADER:] if end == len(data) else data
        _, length, kind, epoch = _FRAME.unpack_from(frame)
        body = frame[FRAME_HEADER : FRAME_HEADER + length]
        if kind == SNAPSHOT:
            self._snapshot(owner, epoch, decode_snapshot(body))
        else:
            self._transaction(owner, name, end, frame, epoch, decode_transaction(body))

    def synced(self, owner: str, name: str) -> None:
        ledger = self.ledgers[owner]
        while ledger.synced < len(ledger.entries) and ledger.entries[ledger.synced].file in {name, *self._gone(owner)}:
            ledger.synced += 1

    def unlinked(self, owner: str, name: str) -> None:
        """A segment is deleted: I5, everything sent by it was consumed."""
        self.gone.add((owner, name))
        for entry, before in zip(self.ledgers[owner].entries[1:], self.ledgers[owner].entries, strict=False):
            if entry.file == name:
                for peer, uids in entry.outs.items():
                    if len(uids) > len(before.outs.get(peer, ())):
                        self.forgotten(owner, peer, len(uids))

    def lost_power(self, owner: str, store: Store) -> None:
        """Only what is on disk has happened, and what comes behind a hole has not."""
        ledger = self.ledgers[owner]
        gone = self._gone(owner)
        for index, entry in enumerate(ledger.entries):
            found = store.files.get(entry.file)
            if not index or (found is None and entry.file in gone):
                continue  # a snapshot that is on disk has it
            if found is None or found.data[entry.end - len(entry.frame) : entry.end] != entry.frame:
                del ledger.entries[index:]
                break
        self.gone = {(peer, name) for peer, name in self.gone if peer != owner or name not in store.files}
        ledger.synced = len(ledger.entries)

    def _gone(self, owner: str) -> set[str]:
        return {name for peer, name in self.gone if peer == owner}

    # ------------------------------------------------------------------------------------------------ invariants
    def forgotten(self, sender: str, receiver: str, last: int) -> None:
        """I5: the sender will never send messages up to `last` again."""
        durable = self.durable(receiver).watermarks.get(sender, 0)
        if last > durable:
            text = f"{sender} has forgotten {last} messages to {receiver}, which has durably consumed {durable}"
            raise Violation("I5", text)

    def durable(self, peer: str) -> Entry:
        ledger = self.ledgers[peer]
        return ledger.entries[ledger.synced - 1] if self.power else ledger.last

    def histories(self) -> None:
        """I3, as a whole: every receiver's history is a prefix of what its sender has committed. After power loss."""
        for peer, ledger in self.ledgers.items():
            for sender, uids in ledger.last.consumed.items():
                sent = self.ledgers[sender].last.outs.get(peer, ())
                if len(sent) < len(uids) or any(a not in (None, b) for a, b in zip(uids, sent, strict=False)):
                    raise Violation("I3", f"{peer} has consumed {uids} from {sender}, which has committed {sent}")

    def _snapshot(self, owner: str, epoch: int, snapshot: Snapshot) -> None:
        """A snapshot repeats what the transactions before it add up to."""
        last = self.ledgers[owner].last
        peers, handlers = snapshot.peers, snapshot.handlers
        if epoch < last.epoch:
            raise Violation("I6", f"{owner}: snapshot of epoch {epoch} after {last.epoch}")
        watermarks = {peers[peer]: seq for peer, seq in snapshot.watermarks if seq}
        assigned = {peers[peer]: seq for peer, seq in snapshot.assigned if seq}
        if watermarks != {peer: seq for peer, seq in last.watermarks.items() if seq}:
            raise Violation("I2", f"{owner}: snapshot has watermarks {watermarks}, consumed is {last.watermarks}")
        if assigned != {peer: len(uids) for peer, uids in last.outs.items() if uids}:
            raise Violation("I3", f"{owner}: snapshot has assigned {assigned}, sent is {last.outs}")
        states = {handlers[index]: tuple(_record(data).items) for index, data in snapshot.states}
        if states != {name: items for name, items in last.records.items() if items}:
            raise Violation("I4", f"{owner}: snapshot has states {states}, the transactions {last.records}")
        if len(snapshot.dead) != last.dead:
            raise Violation("I8", f"{owner}: snapshot has {len(snapshot.dead)} dead letters, not {last.dead}")
        for peer, seq in snapshot.acked:
            self.forgotten(owner, peers[peer], seq)

    def _transaction(self, owner: str, file: str, end: int, frame: bytes, epoch: int, found: Transaction) -> None:
        self.transactions += 1
        before = self.ledgers[owner].last
        if epoch < before.epoch:
            raise Violation("I6", f"{owner}: a transaction of epoch {epoch} after one of {before.epoch}")
        after = Entry(
            file,
            end,
            frame,
            epoch,
            dict(before.watermarks),
            dict(before.consumed),
            dict(before.outs),
            dict(before.records),
            dict(before.loops),
            before.dead,
        )
        handled = self._handled(owner, after, found)
        self._consumption(owner, after, found, handled)
        self._outputs(owner, after, found, handled)
        self.ledgers[owner].entries.append(after)

    def _handled(self, owner: str, after: Entry, found: Transaction) -> list[tuple[str, Item]]:
        """What the handlers' states say was handled, in order."""
        if owner == GATEWAY:
            return []
        names = [handler.name for handler in self.plan.worker(owner).handlers]
        handled: list[tuple[str, Item]] = []
        for index, data in found.states:
            name, items = names[index], tuple(_record(data).items)
            known = after.records.get(name, ())
            if items[: len(known)] != known:
                raise Violation("I4", f"{owner}: state of {name} was {known}, and is now {items}")
            handled += [(name, item) for item in items[len(known) :]]
            after.records[name] = items
        for name, (message_id, _, uid, _) in handled:
            if message_id and uid in self._poison:
                raise Violation("I8", f"{owner}: {name} has handled the poisonous message {message_id}")
            if not message_id:
                after.loops[name] = after.loops.get(name, 0) + 1
                if uid != after.loops[name]:
                    raise Violation("I4", f"{owner}: loop {uid} of {name} in place of {after.loops[name]}")
        return sorted(handled, key=lambda one: one[1][1])

    def _consumption(self, owner: str, after: Entry, found: Transaction, handled: list[tuple[str, Item]]) -> None:
        peers = self.plan.peers
        inline = {uid for _, (_, _, _, sent) in handled for type_name, uid in sent if type_name != "#reply"}
        dead = {(peers[letter.peer], letter.seq): letter for letter in found.dead}
        taken: dict[str, list[Item]] = {}
        for _, item in handled:
            if item[0] and item[2] not in inline:
                taken.setdefault(item[0].rpartition("/")[0], []).append(item)
        for index, watermark in found.consumed:
            peer = peers[index]
            first = after.watermarks.get(peer, 0) + 1
            if watermark < first:
                raise Violation("I1", f"{owner}: consumes {peer}/{watermark}, after {first - 1}")
            sent = self._committed(peer, owner, after)
            if watermark > len(sent):
                raise Violation("I3", f"{owner}: consumes {peer}/{watermark}, but committed are {len(sent)}")
            wanted = [
                (f"{peer}/{seq}", sent[seq - 1]) for seq in range(first, watermark + 1) if (peer, seq) not in dead
            ]
            got = [(item[0], item[2]) for item in taken.pop(peer, [])]
            if owner != GATEWAY and got != wanted:
                again = {f"{peer}/{seq}" for seq in range(1, first)} & {one for one, _ in got}
                same = [one for one, _ in got] == [one for one, _ in wanted]
                invariant = "I1" if again else "I3" if same else "I2" if len(got) < len(wanted) else "I4"
                raise Violation(invariant, f"{owner}: has handled {got}, to be consumed are {wanted}")
            uids = [None if (peer, seq) in dead else sent[seq - 1] for seq in range(first, watermark + 1)]
            after.consumed[peer] = after.consumed.get(peer, ()) + tuple(uids)
            after.watermarks[peer] = watermark
        for peer, items in taken.items():
            known = after.consumed.get(peer, ())
            repeated = any(item[2] in known for item in items)
            raise Violation(
                "I1" if repeated else "I4", f"{owner}: has handled {items} from {peer} without consuming them"
            )
        for (peer, seq), letter in dead.items():
            uid = self._committed(peer, owner, after)[seq - 1]
            if seq > after.watermarks.get(peer, 0) or uid not in self._poison:
                raise Violation("I8", f"{owner}: dead letter {letter.reason} for the innocent {peer}/{seq}")
            if letter.attempts != self.plan.limits.max_attempts:
                raise Violation("I8", f"{owner}: dead letter after {letter.attempts} attempts")
        after.dead += len(dead)

    def _committed(self, sender: str, receiver: str, after: Entry) -> tuple[int, ...]:
        last = after if sender == receiver else self.ledgers[sender].last
        return last.outs.get(receiver, ())

    def _outputs(self, owner: str, after: Entry, found: Transaction, handled: list[tuple[str, Item]]) -> None:
        peers = self.plan.peers
        expected: dict[str, list[int]] = {}
        for name, (_, _, _, sent) in handled:
            for type_name, uid in sent:
                for peer in self._receivers(name, type_name):
                    expected.setdefault(peer, []).append(uid)
        inline = {item[2] for _, item in handled if item[0]}
        if owner in expected:
            expected[owner] = [uid for uid in expected[owner] if uid not in inline]
        for letter in found.dead:
            if peers[letter.peer] == GATEWAY:
                expected.setdefault(GATEWAY, []).append(letter.seq)
        got: dict[str, list[int]] = {}
        for send in found.sends:
            uids = self._uids(self.plan.routes[send.route], send.flags, send.body)
            for index, first in send.edges:
                peer = peers[index]
                if first != len(after.outs.get(peer, ())) + 1 or len(uids) != send.count:
                    known = len(after.outs.get(peer, ()))
                    raise Violation("I3", f"{owner}: {send.count} messages from {first} to {peer} after {known}")
                after.outs[peer] = after.outs.get(peer, ()) + tuple(uids)
                got.setdefault(peer, []).extend(uids)
        if owner != GATEWAY and got != {peer: uids for peer, uids in expected.items() if uids}:
            raise Violation("I4", f"{owner}: sends {got}, its handlers have sent {expected}")

    def _receivers(self, handler: str, type_name: str) -> tuple[str, ...]:
        if type_name == "#reply":
            return (GATEWAY,)
        return self.plan.target_peers(self._routes[handler, type_name])

    def _uids(self, route: Route, flags: int, body: bytes) -> list[int]:
        if flags & FLAG_REPLY:
            return [int.from_bytes(body[:8], "little")]
        messages = self._codecs[route.id].decode_run(body)
        self._poison.update(message.uid for message in messages if getattr(message, "how", ""))
        return [message.uid for message in messages]

    # ------------------------------------------------------------------------------------------------ the end
    def pending(self, fed: Mapping[str, int]) -> list[str]:
        """What is left to do. `fed`: worker -> how many messages come to it from outside."""
        left = []
        for sender, ledger in self.ledgers.items():
            for receiver, uids in ledger.last.outs.items():
                consumed = self.ledgers[receiver].last.watermarks.get(sender, 0)
                if consumed != len(uids):
                    left.append(f"{sender}>{receiver}: {consumed} of {len(uids)} consumed")
        for source, count in self.scene.loops.items():
            done = self.ledgers[self.plan.worker_of(source)].last.loops.get(source, 0)
            if done != count:
                left.append(f"{source}: {done} of {count} loops")
        for worker, count in fed.items():
            sent = len(self.ledgers[GATEWAY].last.outs.get(worker, ()))
            if sent != count:
                left.append(f"gateway>{worker}: {sent} of {count} sent")
        return left
