"""Recovery against dictionaries: state, tables, watermarks, numbers, attempts and dead letters survive every restart by
name, while the topology reorders, adds and drops names."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from persist import (
    DeadLetter,
    Journal,
    NamedDeadLetter,
    Recovered,
    Send,
    Snapshot,
    Transaction,
    UnknownName,
    check,
    read,
    snapshot_of,
)

ALL_PEERS = ["p0", "p1", "p2", "p3"]
ALL_HANDLERS = ["h0", "h1", "h2"]
ALL_ROUTES = [("h0", "A"), ("h0", "B"), ("h1", "A"), ("h2", "C")]
SMALL = st.binary(max_size=6)
INDEX = st.integers(0, 11)
TRANSACTIONS = st.tuples(
    st.lists(st.tuples(INDEX, st.integers(0, 3)), max_size=2),
    st.lists(st.tuples(INDEX, st.integers(1, 3), st.integers(1, 15), SMALL), max_size=3),
    st.lists(st.tuples(INDEX, SMALL), max_size=2),
    st.lists(st.tuples(INDEX, st.sampled_from([b"k", b"l"]), st.none() | SMALL), max_size=4),
    st.lists(st.tuples(INDEX, INDEX), max_size=1),
)
Drawn = tuple[
    list[tuple[int, int]],
    list[tuple[int, int, int, bytes]],
    list[tuple[int, bytes]],
    list[tuple[int, bytes, bytes | None]],
    list[tuple[int, int]],
]

names = st.tuples(
    st.lists(st.sampled_from(ALL_PEERS), min_size=1, unique=True),
    st.lists(st.sampled_from(ALL_HANDLERS), min_size=1, unique=True),
    st.lists(st.sampled_from(ALL_ROUTES), min_size=1, unique=True),
)
Names = tuple[list[str], list[str], list[tuple[str, str]]]


class RecoveryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.journal: Journal | None = None

    @initialize(tables=names)
    def begin(self, tables: Names) -> None:
        self.states: dict[str, bytes] = {}
        self.tables: dict[str, dict[bytes, bytes]] = {}
        self.watermarks: dict[str, int] = {}
        self.assigned: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.attempts: dict[tuple[str, int], int] = {}
        self.dead: list[NamedDeadLetter] = []
        self.sent: list[tuple[str, int, int, tuple[str, str], bytes]] = []  # peer, first, count, route, body
        self.names = tables
        self.open(tables)

    def teardown(self) -> None:
        if self.journal is not None:
            self.journal.close()
        shutil.rmtree(self.directory)

    def pending(self, peers: Sequence[str]) -> list[tuple[str, int, int, tuple[str, str], bytes]]:
        return [run for run in self.sent if run[0] in peers and run[1] + run[2] - 1 > self.acked.get(run[0], 0)]

    def make_snapshot(self, recovered: Recovered | None, epoch: int) -> Snapshot:
        peers, handlers, routes = self.opening
        if recovered is None:
            recovered = Recovered()
        else:
            assert recovered.states == self.states
            assert recovered.tables == {name: table for name, table in self.tables.items() if table}
            assert recovered.watermarks == self.watermarks
            assert {peer: last for peer, last in recovered.assigned.items() if last} == self.assigned
            assert recovered.attempts == self.attempts
            assert recovered.dead == self.dead
            assert all(last <= self.acked.get(peer, 0) for peer, last in recovered.acked.items())
        recovered.acked = dict(self.acked)
        recovered.attempts = self.attempts | self.new_attempts
        made = snapshot_of(
            recovered, level="process", fingerprint=str(epoch), peers=peers, handlers=handlers, routes=routes
        )
        self.dead_rows = list(made.dead)
        return made

    def open(self, tables: Names, new_attempts: dict[tuple[str, int], int] | None = None) -> None:
        """Under these names; those for which messages are pending cannot be missing, and are then put back."""
        self.opening, self.new_attempts = tables, new_attempts or {}
        refused: Counter[str] = Counter()
        for peer, first, count, route, _ in self.pending(ALL_PEERS):
            waiting = first + count - 1 - max(first - 1, self.acked.get(peer, 0))
            if peer not in tables[0]:
                refused[f"peer {peer}"] += waiting
            if route not in tables[2]:
                refused[f"route {route[0]} -> {route[1]}"] += waiting
        if refused:
            with pytest.raises(UnknownName) as refusal:
                self.reopen()
            assert refusal.value.names == refused
            routes = tables[2] + [run[3] for run in self.pending(ALL_PEERS)]
            peers = tables[0] + [run[0] for run in self.pending(ALL_PEERS)]
            tables = list(dict.fromkeys(peers)), tables[1], list(dict.fromkeys(routes))
            self.opening = tables
        self.names = tables
        self.journal = self.reopen()
        self.attempts |= self.new_attempts
        assert check(self.directory).ok

    def reopen(self) -> Journal:
        journal, _ = Journal.open(self.directory, epoch=0, level="process", make_snapshot=self.make_snapshot)
        return journal

    @rule(transactions=st.lists(TRANSACTIONS, min_size=1, max_size=3))
    def transact(self, transactions: list[Drawn]) -> None:
        for consumed, runs, states, keys, dead in transactions:
            self.commit(consumed, runs, states, keys, dead)

    def commit(
        self,
        consumed: list[tuple[int, int]],
        runs: list[tuple[int, int, int, bytes]],
        states: list[tuple[int, bytes]],
        keys: list[tuple[int, bytes, bytes | None]],
        dead: list[tuple[int, int]],
    ) -> None:
        """Indices are modulo the tables of the moment; the receivers of a run are the bits of its third number."""
        assert self.journal is not None
        peers, handlers, routes = self.names
        made = Transaction()
        for some, more in consumed:
            peer = some % len(peers)
            name = peers[peer]
            self.watermarks[name] = self.watermarks.get(name, 0) + more
            made.consumed.append((peer, self.watermarks[name]))
        for some, count, bits, body in runs:
            route = some % len(routes)
            edges = []
            for peer, name in enumerate(peers):
                if bits >> peer & 1:
                    first = self.assigned.get(name, 0) + 1
                    self.assigned[name] = first + count - 1
                    self.sent.append((name, first, count, routes[route], body))
                    edges.append((peer, first))
            made.sends.append(Send(route, count, 0, edges, body))
        for some, value in states:
            handler = some % len(handlers)
            self.states[handlers[handler]] = value
            made.states.append((handler, value))
        for some, key, row in keys:
            handler = some % len(handlers)
            table = self.tables.setdefault(handlers[handler], {})
            if row is None:
                table.pop(key, None)
            else:
                table[key] = row
            made.keys.append((handler, key, row))
        for some, other in dead:
            peer, route = some % len(peers), other % len(routes)
            rest = ("handler", "Type", "reason", "detail", 3, 10**18, b"body")
            seq = self.watermarks.get(peers[peer], 0)
            made.dead.append(DeadLetter(peer, seq, route, *rest))
            self.dead.append(NamedDeadLetter(**self.letter(peers[peer], seq, routes[route], rest)))
        self.journal.append(made)
        self.dead_rows += made.dead
        self.forget_attempts()

    @staticmethod
    def letter(peer: str, seq: int, route: tuple[str, str], rest: Sequence[object]) -> dict:
        fields = ("handler", "type", "reason", "detail", "attempts", "time_ns", "body")
        return {"peer": peer, "seq": seq, "route": route, **dict(zip(fields, rest, strict=True))}

    def forget_attempts(self) -> None:
        """An attempt counts until its message is consumed."""
        self.attempts = {
            (peer, seq): count for (peer, seq), count in self.attempts.items() if seq > self.watermarks.get(peer, 0)
        }

    @rule(more=st.fixed_dictionaries(dict.fromkeys(ALL_PEERS, st.integers(0, 12))))
    def acknowledge(self, more: dict[str, int]) -> None:
        assert self.journal is not None
        for peer, last in self.assigned.items():
            self.acked[peer] = min(self.acked.get(peer, 0) + more[peer], last)
        self.journal.trim({index: self.acked.get(name, 0) for index, name in enumerate(self.names[0])})

    @rule(some=st.integers(0, 7))
    def remove_dead_letter(self, some: int) -> None:
        """And all others of the same id, which the runtime gives to one only."""
        assert self.journal is not None
        if not self.dead:
            return
        gone, row = self.dead[some % len(self.dead)], self.dead_rows[some % len(self.dead)]
        self.journal.append(Transaction(removed=[(row.peer, row.seq)]))
        self.dead = [one for one in self.dead if (one.peer, one.seq) != (gone.peer, gone.seq)]
        self.dead_rows = [one for one in self.dead_rows if (one.peer, one.seq) != (row.peer, row.seq)]

    @rule(some=st.integers(0, 7), ahead=st.integers(1, 3), count=st.integers(1, 5))
    def count_attempts(self, some: int, ahead: int, count: int) -> None:
        """Of a message that is still to be consumed."""
        assert self.journal is not None
        peer = some % len(self.names[0])
        name = self.names[0][peer]
        seq = self.watermarks.get(name, 0) + ahead
        self.journal.append(Transaction(attempts=[(peer, seq, count)]))
        self.attempts[name, seq] = count

    @rule()
    def rotate(self) -> None:
        """With what a worker knows: its own names and the rows of its dead letters."""
        assert self.journal is not None
        peers, handlers, routes = self.names
        peer = {name: index for index, name in enumerate(peers)}
        handler = {name: index for index, name in enumerate(handlers)}
        made = Snapshot(
            "process",
            "rotated",
            peers,
            handlers,
            routes,
            watermarks=[(peer[name], seq) for name, seq in self.watermarks.items() if name in peer],
            assigned=[(peer[name], seq) for name, seq in self.assigned.items() if name in peer],
            acked=[(peer[name], seq) for name, seq in self.acked.items() if name in peer],
            states=[(handler[name], value) for name, value in self.states.items() if name in handler],
            tables=[
                (handler[name], key, value)
                for name, table in self.tables.items()
                if name in handler
                for key, value in table.items()
            ],
            attempts=[(peer[name], seq, count) for (name, seq), count in self.attempts.items() if name in peer],
            dead=self.dead_rows,
        )
        self.journal.rotate(made)

    @rule(tables=names, again=st.booleans(), blamed=st.none() | st.sampled_from(ALL_PEERS), deaths=st.integers(1, 3))
    def restart(self, tables: Names, again: bool, blamed: str | None, deaths: int) -> None:
        """Possibly under other names, and with an attempt counted against the next message of someone."""
        assert self.journal is not None
        self.read_back()
        self.journal.close()
        new = {} if blamed is None else {(blamed, self.watermarks.get(blamed, 0) + 1): deaths}
        self.open(self.names if again else tables, new)

    def read_back(self) -> None:
        """What is pending, and everything else without the lock."""
        assert self.journal is not None
        peers, _, routes = self.names
        for peer, name in enumerate(peers):
            found = [
                (name, send.edges[0][1], send.count, routes[send.route], bytes(send.body))
                for _, send in self.journal.sends(peer, self.acked.get(name, 0), 0)
            ]
            assert found == self.pending([name])
        without_the_lock = read(self.directory)
        assert (without_the_lock.epoch, without_the_lock.position) == (self.journal.epoch, self.journal.position)
        assert (without_the_lock.states, without_the_lock.dead) == (self.states, self.dead)


RecoveryMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRecovery = pytest.mark.timeout(600)(RecoveryMachine.TestCase)  # a failure takes long to shrink
