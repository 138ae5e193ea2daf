"""Sessions in a world of simulated time: ends with memory backends, a network whose frames are a list, and an oracle.

Nothing here knows how a session does it. `check` is what must hold at any moment, `settle` what must be reached when
faults end. Messages are numbered through all ends, so each is told from any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random

from persist.ilm import identity
from persist.ilm.backend import Change, PeerState, Run
from persist.ilm.backend_memory import MemoryBackend
from persist.ilm.flight import Limits
from persist.ilm.session import Session
from persist.ilm.wire import Poll, decode, run_body

INBOX = 500
LIMITS = Limits(window=400, inbox=INBOX, frame=1024, retry_first=0.05, retry_last=0.4)
ARCHIVE = 300  # frames that may come again
ROUNDS = 300  # in which everything must be settled
QUIET_ROUNDS = 10  # in which what was lost must be found out


class Violation(AssertionError):
    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


class Durable:
    """What survives a crash of one end. `sent` and `delivered` are the oracle's: (id, message) for each peer."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.sent: dict[str, list[tuple[int, int]]] = {}
        self.delivered: dict[str, list[tuple[int, int]]] = {}


class End:
    """One process, over what is durable."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.durable = Durable()
        self.saved: Durable | None = None
        self.sessions: dict[str, Session] = {}
        self.remembered: dict[str, identity.Remembered] = {}
        self.taken: dict[str, int] = {}  # messages of the first frame of the inbox that are delivered

    def open(self) -> None:
        states = self.durable.backend.recover()
        store = identity.adopt(self.durable.backend, self.name, self.world.fresh_number)
        self.sessions.clear()
        for peer in self.world.peers_of(self.name):
            self._meet(peer, states.get(peer, PeerState()), store)

    def _meet(self, peer: str, state: PeerState, store: int) -> None:
        known = self.remembered[peer] = identity.recall(self.durable.backend, peer, store, state)
        session = Session(self.name, peer, known.own, known.store, self.world.fresh_number(), LIMITS)
        session.restore(state, known.reach)
        self.sessions[peer] = session
        self.taken[peer] = 0

    def crash(self) -> None:
        self.durable.backend.close()
        self.open()

    def save(self) -> None:
        self.saved = copy.deepcopy(self.durable)

    def go_back(self) -> None:
        """To an older copy of the storage."""
        if self.saved is not None:
            self.durable.backend.close()
            self.durable, self.saved = self.saved, None
            self.durable.backend.close()
            self.open()

    def lose_all(self) -> None:
        self.durable.backend.close()
        self.durable, self.saved = Durable(), None
        self.open()

    def forget(self, peer: str) -> None:
        session, known, backend = self.sessions[peer], self.remembered[peer], self.durable.backend
        last_id = session.outbound.assigned + known.offset
        now = identity.Remembered(session.own_store, session.peer_store, known.offset)
        backend.commit(identity.forgetting(peer, now, self.world.fresh_number(), last_id))
        backend.forget(peer)
        backend.commit(identity.forgotten(peer))
        self.durable.sent.pop(peer, None)
        self.durable.delivered.pop(peer, None)
        store = identity.adopt(backend, self.name, self.world.fresh_number)
        self._meet(peer, PeerState(), store)
        if session.is_connected:
            self.sessions[peer].connected(self.world.now)

    def send(self, peer: str, counts: list[int], gap: int = 0) -> None:
        """Commit runs of so many messages; the ids jump before the first."""
        session, known = self.sessions[peer], self.remembered[peer]
        values = []
        if gap:
            known.offset += gap
            values.append((identity.peer_key(peer, "offset"), identity.number(known.offset)))
        runs = []
        number = session.outbound.assigned
        sent = []
        for count in counts:
            several = [self.world.fresh_number() for _ in range(count)]
            first_id = number + 1 + known.offset
            body = run_body(first_id, [one.to_bytes(8, "big") + bytes(12) for one in several])
            runs.append(Run(number + 1, count, body))
            sent += [(first_id + index, one) for index, one in enumerate(several)]
            number += count
        position = self.durable.backend.commit(Change([(peer, run) for run in runs], values=values))
        self.durable.sent.setdefault(peer, []).extend(sent)
        for run in runs:
            session.committed(run, position)

    def deliver(self, peer: str, most: int) -> None:
        """Deliver and commit up to so many messages."""
        session = self.sessions[peer]
        log = self.durable.delivered.setdefault(peer, [])
        while most > 0 and session.inbox:
            frame, skip = session.inbox[0]
            done = skip + self.taken[peer]
            several = frame.contents(done)[:most]
            through = frame.number + done + len(several) - 1
            if several:
                self.durable.backend.commit(Change(consumed=((peer, through),)))
                log += [
                    (frame.first_id + done + index, int.from_bytes(one[:8], "big")) for index, one in enumerate(several)
                ]
                session.delivered(through)
            most -= len(several)
            self.taken[peer] += len(several)
            if skip + self.taken[peer] >= frame.count:
                session.inbox.popleft()
                session.took(frame)
                self.taken[peer] = 0
            if not several:
                return

    def receive(self, peer: str, frame: bytes) -> None:
        session = self.sessions[peer]
        if not session.is_connected:
            session.connected(self.world.now)
        outcome = session.received(frame, self.world.now)
        if outcome.remember or outcome.first:
            self.durable.backend.commit(identity.learned(peer, outcome.remember, outcome.first))
        if outcome.acked:
            self.durable.backend.acknowledged(peer, outcome.acked)

    def pump(self, peer: str) -> Iterator[bytes]:
        """All frames that may go."""
        session = self.sessions[peer]
        session.tick(self.world.now)
        while True:
            if session.needs_refill:
                begin = session.outbound.spilled_from
                assert begin is not None
                session.refill(self.durable.backend.runs(peer, session.outbound.published, begin))
            frame = session.next_frame(self.world.now)
            if frame is None:
                return
            yield frame


class World:
    """`lossless`: nobody lost or forgot anything so far, so nobody may say so."""

    def __init__(self, names: tuple[str, ...] = ("a", "b")) -> None:
        self.now = 100.0
        self.lossless = True
        self._number = 0
        self.network: list[tuple[str, str, bytes]] = []
        self.archive: list[tuple[str, str, bytes]] = []
        self.ends = {name: End(self, name) for name in names}
        for end in self.ends.values():
            end.open()
        self.pairs = [(a, b) for a in names for b in names if a != b]
        for a, b in self.pairs:
            self.ends[a].sessions[b].connected(self.now)

    def fresh_number(self) -> int:
        self._number += 1000
        return self._number

    def peers_of(self, name: str) -> list[str]:
        return [other for other in self.ends if other != name]

    # --- what may happen

    def pump(self) -> None:
        for source, destination in self.pairs:
            for frame in self.ends[source].pump(destination):
                self.network.append((source, destination, frame))
                self.archive.append((source, destination, frame))
        del self.archive[:-ARCHIVE]
        self.check()

    def arrive(self, index: int, keep: bool = False) -> None:
        """One frame, which may be on its way once more."""
        if self.network:
            index %= len(self.network)
            source, destination, frame = self.network[index] if keep else self.network.pop(index)
            self.ends[destination].receive(source, frame)
            self.check()

    def replay(self, index: int) -> None:
        if self.archive:
            self.network.append(self.archive[index % len(self.archive)])

    def lose(self, index: int) -> None:
        if self.network:
            self.network.pop(index % len(self.network))

    def reconnect(self, a: str, b: str, told: bool) -> None:
        """The frames between the two are lost; `b` may not be told."""
        self.cut(a, b)
        self.ends[a].sessions[b].lost()
        self.ends[a].sessions[b].connected(self.now)
        if told:
            self.ends[b].sessions[a].lost()
            self.ends[b].sessions[a].connected(self.now)

    def cut(self, a: str, b: str) -> None:
        self.network = [one for one in self.network if {one[0], one[1]} != {a, b}]

    def restart(self, name: str, how: str = "crash", told: bool = True) -> None:
        end = self.ends[name]
        if how == "crash":
            end.crash()
        else:
            self.lossless = False
            end.lose_all() if how == "lose_all" else end.go_back()
        for peer in self.peers_of(name):
            if how == "go_back":  # what was under way is from a future that never was
                self.archive = [one for one in self.archive if {one[0], one[1]} != {name, peer}]
                self.cut(name, peer)
            end.sessions[peer].connected(self.now)
            if told:
                self.ends[peer].sessions[name].lost()
                self.ends[peer].sessions[name].connected(self.now)

    def forget(self, name: str, peer: str) -> None:
        self.lossless = False
        self.ends[name].forget(peer)

    # --- what must hold

    def check(self) -> None:
        for source, destination in self.pairs:
            a, b = self.ends[source], self.ends[destination]
            outbound, inbound = a.sessions[destination], b.sessions[source]
            sent = a.durable.sent.get(destination, [])
            got = b.durable.delivered.get(source, [])
            if len(set(got)) < len(got) or [one for one, _ in got] != sorted({one for one, _ in got}):
                raise Violation("once", f"{destination} got {got} from {source}")
            if inbound.inbox_bytes > INBOX:
                raise Violation("inbox", f"{inbound.inbox_bytes} bytes at {destination}")
            flight = outbound._flight
            if flight.room < 0 and len(flight._frames) > 1:
                raise Violation("window", f"{-flight.room} bytes over it from {source} to {destination}")
            if self.lossless:
                if got != sent[: len(got)]:
                    raise Violation("order", f"{destination} got {got} of {sent}")
                if outbound.outbound.acked > len(got):
                    raise Violation("acked", f"{source} thinks {outbound.outbound.acked}, {destination} has {len(got)}")
                if outbound.problem is not None:
                    raise Violation("alarm", str(outbound.problem))

    def pending(self) -> list[str]:
        """The pairs that are not done: nobody says that state was lost, and not all is delivered and acknowledged."""
        found = []
        for source, destination in self.pairs:
            a, b = self.ends[source], self.ends[destination]
            session = a.sessions[destination]
            if session.problem is not None or b.sessions[source].problem is not None:
                continue
            sent, got = a.durable.sent.get(destination, []), b.durable.delivered.get(source, [])
            if sent != got or session.outbound.unacked:
                found.append(f"{source} to {destination}: {got} of {sent}, {session.outbound.unacked} unacknowledged")
        return found

    def settle(self) -> None:
        """No more faults: everything is delivered, or someone says why not. Only polls may go on after that."""
        for turn in range(ROUNDS):
            self.pump()
            quiet = all(isinstance(decode(frame), Poll) for _, _, frame in self.network)
            if quiet and turn > QUIET_ROUNDS and not self.pending():
                return
            for source, destination, frame in self.network[:]:
                self.ends[destination].receive(source, frame)
                self.ends[destination].deliver(source, 1000)
                self.check()
            self.network.clear()
            for source, destination in self.pairs:
                self.ends[destination].deliver(source, 1000)
            self.now += 0.1
        raise Violation("liveness", "; ".join(self.pending()) or "frames for ever")

    def problems(self) -> list[tuple[str, str]]:
        return [(a, b) for a, b in self.pairs if self.ends[a].sessions[b].problem is not None]

    def settle_for_good(self) -> None:
        """The same; then those who have a problem forget, until nobody has any and all goes on as before. Nor do frames
        of before do any harm."""
        self.settle()
        for _ in range(4):
            for name, peer in self.problems():
                self.forget(name, peer)
            self.settle()
        if self.problems():
            raise Violation("forget", f"problems that stay: {self.problems()}")
        for frame in self.archive[:]:
            self.network.append(frame)
        for source, destination in self.pairs:
            self.ends[source].send(destination, [1, 2])
        self.settle()
        if self.problems():
            raise Violation("alarm", f"late frames led to {self.problems()}")


def wander(world: World, random: Random, steps: int, faults: tuple[str, ...]) -> None:
    """A random walk; `faults` are the names of what may go wrong, see below."""
    names = list(world.ends)
    for _ in range(steps):
        a, b = random.sample(names, 2)
        dice = random.random()
        fault = random.choice(faults) if faults and dice < 0.25 else ""
        index = random.randrange(1 << 16)
        if fault == "lose":
            for _ in range(random.choice([1, 1, 20])):
                world.lose(index)
        elif fault == "double":
            world.arrive(index, keep=True)
        elif fault == "reorder":
            world.arrive(index)
        elif fault == "replay":
            world.replay(index)
        elif fault == "reconnect":
            world.reconnect(a, b, random.random() < 0.7)
        elif fault == "crash":
            world.restart(a, told=random.random() < 0.7)
        elif fault in ("lose_all", "go_back"):
            if random.random() < 0.3:
                world.restart(a, fault, told=random.random() < 0.7)
            else:
                world.ends[a].save()
        elif fault == "forget":
            if random.random() < 0.2:
                world.forget(a, b)
        elif dice < 0.45:
            counts = [random.randint(1, 4) for _ in range(random.randint(1, 4))]
            world.ends[a].send(b, counts, random.choice([0, 0, 0, 5]))
        elif dice < 0.55:
            world.now += random.random() * 0.2
        elif dice < 0.7:
            world.ends[a].deliver(b, random.randint(1, 12))
        else:
            for _ in range(random.randint(1, 6)):
                world.arrive(0)
        world.pump()
