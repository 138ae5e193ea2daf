"""Whatever fails, in whatever order: a transaction has all of its effects or none, and each message one of them.

The worker is real, up to its rings and its journal; the reference is a list of what was sent to it and what the scripts
of those messages say (`transacting`). It does not say in which order the links take turns: in which order messages had
their effects is read from the traces, and everything else has to be what follows from that.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.codec import FLAG_ASK, FLAG_CLAIM, FLAG_COMMAND, FLAG_ERROR, FLAG_REPLY
from actors.letter_commands import Command
from actors.plan import GATEWAY
from actors.replies import request_of
from actors.table import _UNREAD
from persist import read

from ..bus.implementations import RINGS
from .transacting import (
    ASKED,
    FAILING,
    FEEDS,
    KINDS,
    SETTLED_IN,
    STATELESS,
    TARGETS,
    Lab,
    Line,
    change,
    child_id,
    script_of,
)

LOGS = ("keeper", "inner", "bundle", "ticker")


REASONS = {
    "x": {"ValueError"},
    "u": {"BadMessage"},
    "m": {"MessageTooLarge"},
    "w": {"BadState", "ValueError"},
    "W": {"BadState", "ValueError"},
    "y": {"UnroutedMessage"},
}


class Item(NamedTuple):
    """A message, as it was sent."""

    kind: str
    acts: tuple[str, ...]
    asked: bool = False

    @property
    def fails(self) -> bool:
        return any(act in FAILING for act in self.acts)


class Order(NamedTuple):
    """A command about dead letters, and those that it is about and are there when its turn comes."""

    action: str
    ids: tuple[str, ...]


GOOD = st.sampled_from(["p", "r", "b", "P", "c", "p", "r"])
SMALL = st.sampled_from(["+", "+p", "+h", "+k", "+ph", "+d", "+r", "+b", "+kk"])
SMALL_WRONG = st.sampled_from(["+x", "+px", "+1", "+2", "+hw", "+w", "+ku", "+m", "+W", "+dx", "+!", "+h1", "+pex"])
LOCAL = st.builds("{}:{}".format, st.sampled_from("hdkh"), SMALL | SMALL | SMALL_WRONG)
EFFECTS = st.lists(GOOD | LOCAL, max_size=3)
FAULTS = st.sampled_from(["1", "2", "1", "2", "!", "x", "u", "m", "w", "W", "y", "ex", "sx", "ew"])


@st.composite
def scripts(draw: st.DrawFn) -> tuple[str, ...]:
    """At most one fault of its own, somewhere among what it does."""
    acts = draw(EFFECTS)
    if draw(st.sampled_from([True, True, True, False])):
        acts.insert(draw(st.integers(0, len(acts))), "+")
    if draw(st.sampled_from([False, False, True])):
        at = draw(st.integers(0, len(acts)))
        acts[at:at] = draw(FAULTS)
    return tuple(acts) or ("",)


CALM = st.sampled_from([("+",), ("+", "p"), ("p",), ("",), ("+", "h:+"), ("r", "+"), ("h:+p",)])
SCRIPTS = CALM | scripts()
SENDERS = st.sampled_from(["p", "q", "p", "q", GATEWAY])
TURNS = st.sampled_from([0, 1, 1, 1, 2, 4])


class Transactions(RuleBasedStateMachine):
    lab: Lab

    @initialize(
        level=st.sampled_from(["process", "process", "memory"]),
        ring=st.sampled_from([name for name in ("c", "python") if name in RINGS]),
        inline=st.sampled_from([10_000, 2, 1, 0]),
        order=st.integers(0, 7),
    )
    def begin(self, level: str, ring: str, inline: int, order: int) -> None:
        self.items: dict[str, Item] = {}
        self.came: dict[str, list[str | Order]] = {peer: [] for peer in FEEDS}  # by sequence number, from 1
        self.received: dict[str, list[Any]] = {peer: [] for peer in ("p", "r", GATEWAY)}  # the same, what was sent
        self.ordered: Counter[str] = Counter()  # commands about an id
        self.lab = Lab(level, ring, inline, order)
        self.limit = inline

    def teardown(self) -> None:
        if hasattr(self, "lab"):
            try:
                if sys.exc_info()[0] is None:
                    self.settle()
            finally:
                self.lab.close()

    # ------------------------------------------------------------------------------------------------ what happens
    @rule(peer=SENDERS, kind=st.sampled_from(list(KINDS)), script=SCRIPTS, turns=TURNS)
    def come(self, peer: str, kind: str, script: tuple[str, ...], turns: int) -> None:
        self.push(peer, kind, [script], 0)
        self.turns(turns)

    @rule(
        peer=SENDERS,
        kind=st.sampled_from(list(KINDS)),
        run=st.lists(CALM | CALM | scripts(), min_size=2, max_size=5),
        failing=st.none() | st.tuples(st.integers(0, 4), FAULTS | st.sampled_from(["1", "2"])),
        turns=TURNS,
    )
    def come_together(
        self, peer: str, kind: str, run: list[tuple[str, ...]], failing: tuple[int, str] | None, turns: int
    ) -> None:
        if failing is not None:
            at, fault = failing
            run[at % len(run)] = ("+", "p", *fault)
        self.push(peer, kind, run, 0)
        self.turns(turns)

    @rule(peer=st.sampled_from(["p", "q"]), turns=TURNS)
    def peek(self, peer: str, turns: int) -> None:
        self.look(peer, turns)

    def look(self, peer: str, turns: int) -> None:
        """Messages that change nothing, for one handler after the other."""
        for kind in KINDS:
            self.push(peer, kind, [("p",)], 0)
        self.turns(turns)

    @rule(
        peer=st.sampled_from(["p", "q"]),
        kind=st.sampled_from(list(KINDS)),
        effects=st.sampled_from([("c",), ("+",), ("h:+",), ("+", "h:+k", "d"), ("k:+", "h:+"), ("+", "P", "d:+p")]),
        fault=st.sampled_from(["w", "W", "u", "m", "x", "ex", "sx", "1", "2"]),
        after=st.sampled_from([None, 0, 3]),
    )
    def fail(self, peer: str, kind: str, effects: tuple[str, ...], fault: str, after: int | None) -> None:
        """With much that has to be taken back; so many turns later come messages that change nothing."""
        self.push(peer, kind, [(*effects, *fault)], 0)
        self.turns(1)
        if after is not None:
            self.turns(after)
            self.look(peer, 2)

    @precondition(lambda self: self.lab.level != "memory")
    @rule(
        peer=st.sampled_from(["p", "q", "source"]),
        kind=st.sampled_from(list(KINDS)),
        script=SCRIPTS,
        after=st.sampled_from([0, 0, 1, 2]),
        times=st.sampled_from([1, 1, 2]),
    )
    def refuse(self, peer: str, kind: str, script: tuple[str, ...], after: int, times: int) -> None:
        """The disk has no room for some of what follows."""
        if peer == "source":
            script = ("+", "p", "h:+")
            self.lab.scripts.append(",".join(script))
            self.items[f"ticker{len(self.lab.scripts)}"] = Item("tick", script)
        else:
            self.push(peer, kind, [script], 0)
        self.lab.refuse(after, times)
        self.turns(2)

    @rule(kind=st.sampled_from(ASKED), script=SCRIPTS, answered=st.booleans(), turns=TURNS)
    def ask(self, kind: str, script: tuple[str, ...], answered: bool, turns: int) -> None:
        self.push(GATEWAY, kind, [(*script, "a") if answered else script], FLAG_ASK)
        self.turns(turns)

    def push(self, peer: str, kind: str, run: Sequence[tuple[str, ...]], flags: int) -> None:
        if peer == GATEWAY and kind not in ASKED:
            kind = ASKED[len(kind) % len(ASKED)]
        first = len(self.came[peer]) + 1
        messages = [KINDS[kind](f"{peer}{first + at}", ",".join(acts)) for at, acts in enumerate(run)]
        if self.lab.push(peer, first, kind, messages, flags):
            for message, acts in zip(messages, run, strict=True):
                self.items[message.id] = Item(kind, acts, bool(flags))
                self.came[peer].append(message.id)

    @rule(script=CALM | st.tuples(st.sampled_from(["1", "2", "!", "p", "b"]), LOCAL, st.just("+")), turns=TURNS)
    def source(self, script: tuple[str, ...], turns: int) -> None:
        self.lab.scripts.append(",".join(script))
        self.items[f"ticker{len(self.lab.scripts)}"] = Item("tick", script)
        self.turns(turns)

    @precondition(lambda self: self.lab.endpoint.dead)
    @rule(data=st.data(), action=st.sampled_from(["drop", "requeue", "mend"]), turns=TURNS)
    def order(self, data: st.DataObject, action: str, turns: int) -> None:
        """A dead letter is dropped, or tried again, maybe with its cause mended."""
        letters = sorted(self.letters())
        ids = data.draw(st.lists(st.sampled_from(letters), min_size=1, max_size=2, unique=True))
        there = {
            id_of(letter.body): (self.lab.plan.peers[letter.peer], letter.seq) for letter in self.lab.endpoint.dead
        }
        under_way = {one for came in self.pending(GATEWAY) if isinstance(came, Order) for one in came.ids}
        # Whether a message without a trace has been handled again is not seen.
        fine = [one for one in ids if one not in under_way and (action != "mend" or self.traces(one))]
        command = Command("drop" if action == "drop" else "requeue", [there[one] for one in ids if one in fine])
        if self.lab.push_command(len(self.came[GATEWAY]) + 1, msgspec.msgpack.encode(command)):
            self.came[GATEWAY].append(Order(action, tuple(fine)))
            if action == "mend":
                self.lab.mended.update(fine)
        self.turns(turns)

    @rule(peer=st.sampled_from(["p", "r", GATEWAY]), acknowledged=st.sampled_from([True, True, False]))
    def take(self, peer: str, acknowledged: bool) -> None:
        received = self.received[peer]
        for first, count, flags, body in self.lab.take(peer, acknowledged):
            found = list(told(peer, count, flags, body))
            assert len(found) == count
            assert first <= len(received) + 1, "a gap"
            again = received[first - 1 : first - 1 + count]
            assert again == found[: len(again)], "other things were sent by these numbers before"
            received += found[len(again) :]

    @rule(count=st.sampled_from([1, 2, 5]))
    def turns(self, count: int) -> None:
        for _ in range(count):
            self.lab.turn()
            self.nothing_is_left_of_a_transaction()

    @rule()
    def later(self) -> None:
        self.lab.clock.ns += 200_000_000
        self.turns(1)

    @precondition(lambda self: self.lab.level != "memory")
    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.lab.disk.full = full

    @precondition(lambda self: self.lab.level != "memory")
    @rule()
    def renew(self) -> None:
        self.lab.renew()

    @precondition(lambda self: self.lab.level != "memory")
    @rule()
    def die(self) -> None:
        self.lab.die()

    @precondition(lambda self: self.lab.level != "memory")
    @rule(written=st.sampled_from(["before", "within", "after"]), error=st.sampled_from([OSError, None]))
    def die_writing(self, written: str, error: type[BaseException] | None) -> None:
        """At the next write to its journal, whatever that is."""
        self.lab.die_writing(written, error)
        self.turns(1)

    @precondition(lambda self: self.lab.level != "memory")
    @rule(where=st.sampled_from(["publish", "acknowledge", "release", "rollback"]))
    def die_moving(self, where: str) -> None:
        """With what is committed not yet on its way, or not yet told of; or in the middle of a failure."""
        self.lab.die_in(where)
        self.turns(1)

    @rule()
    def settle(self) -> None:
        """Until nothing is left to be done; then everything has had its effect."""
        lab = self.lab
        lab.disk.full = False
        for _ in range(SETTLED_IN):
            for peer in self.received:
                self.take(peer, True)
            lab.clock.ns += 50_000_000
            self.turns(1)
            if lab.idle and not any(self.pending(peer) for peer in self.came) and self.unfed == 0:
                break
        else:
            raise AssertionError("it does not come to rest")
        for peer in self.received:
            self.take(peer, True)
        lab.turn()
        self.all_is_as_the_messages_say()
        assert self.waiting == 0
        assert lab.dispatcher.settled
        assert not lab.endpoint.claims._sizes.keys() - {
            claim for claim, letters in lab.endpoint.claims._letters.items() if letters
        }
        assert all(len(self.received[peer]) == self.link(peer).outbound.assigned for peer in self.received)

    # ------------------------------------------------------------------------------------------------ what is known
    def link(self, peer: str) -> Any:
        return self.lab.endpoint.links[self.lab.plan.peers.index(peer)]

    def pending(self, peer: str) -> list[str | Order]:
        return self.came[peer][self.link(peer).inbound.watermark :]

    @property
    def unfed(self) -> int:
        fed: int = self.states()["ticker"].get("fed", 0)
        return len(self.lab.scripts) - fed

    @property
    def waiting(self) -> int:
        """Carried over, by the worker to itself."""
        me = self.lab.endpoint.me
        return int(me.outbound.assigned - me.inbound.watermark)

    def letters(self) -> list[str]:
        return [id_of(letter.body) for letter in self.lab.endpoint.dead]

    def states(self) -> dict[str, dict[str, Any]]:
        """Of the handlers with a State: what is committed."""
        found = {}
        for hosted in self.lab.dispatcher.hosted:
            if hosted.name in LOGS:
                state, _ = hosted.whole()
                found[hosted.name] = msgspec.msgpack.decode(state) if state is not None else {}
        return found

    def table(self, name: str, type_: Any) -> dict[str, Any]:
        (hosted,) = (one for one in self.lab.dispatcher.hosted if one.name == name)
        _, items = hosted.whole()
        decode = msgspec.msgpack.decode
        return {decode(key, type=str): decode(value, type=type_) for key, value in items.items()}

    def traces(self, id: str) -> list[str]:  # noqa: A002
        """The handlers in which a message leaves one."""
        item = self.items[id]
        if "+" not in item.acts:
            return []
        targets = ("ticker",) if item.kind == "tick" else TARGETS[item.kind]
        return [name for name in targets if name != STATELESS]

    # ------------------------------------------------------------------------------------------------ what must hold
    @invariant()
    def nothing_is_left_of_a_transaction(self) -> None:
        """Between two of them, nothing is in the process that is not committed."""
        dispatcher, endpoint = self.lab.dispatcher, self.lab.endpoint
        outgoing, claims = dispatcher._outgoing, endpoint.claims
        assert not self.lab.wants_an_end
        assert (bool(outgoing), outgoing.sent, outgoing._used, outgoing._open) == (False, 0, [], {})
        assert (outgoing.between, outgoing._large, outgoing.heavy) == (0, 0, False)
        assert (dispatcher._touched, dispatcher._removed, dispatcher._handled) == (set(), [], 0)
        assert dispatcher.local.budget == self.limit
        assert (claims._fresh, claims._laid, claims._tickets) == ([], set(), {})
        for link in endpoint.links:
            assert link.inbound.seen == link.inbound.watermark
            assert link.outbound.assigned == link.outbound.last_committed
        for peer, seq in dispatcher.attempts:
            assert seq > endpoint.links[peer].inbound.watermark, "attempts at what is consumed"
        for hosted in dispatcher.hosted:
            if hosted.name in LOGS:
                whole, _ = hosted.whole()
                live = vars(hosted.instance)["state"]
                assert live == (type(live)() if whole is None else msgspec.msgpack.decode(whole, type=type(live)))
            elif hosted.stateful:
                table = vars(hosted.instance)["state"]
                committed = self.table(hosted.name, Line if hosted.name == "rows" else int)
                assert list(table._live) == list(committed)
                assert all(value is _UNREAD or value == committed[key] for key, value in table._live.items())
                assert (table._touched, table._fresh, table._dropped, table._pending) == ({}, {}, {}, [])

    @invariant()
    def the_journal_has_what_is_committed(self) -> None:
        lab = self.lab
        if lab.level == "memory":
            return
        found = read(lab.folder / "w")
        for hosted in lab.dispatcher.hosted:
            state, items = hosted.whole()
            assert found.states.get(hosted.name) == state
            assert list(found.tables.get(hosted.name, {}).items()) == list(items.items())
        for link in lab.endpoint.links:
            assert found.watermarks.get(link.name, 0) == link.inbound.watermark
            assert found.assigned.get(link.name, 0) == link.outbound.assigned
        dead = [(lab.plan.peers[one.peer], one.seq, one.body) for one in lab.endpoint.dead]
        assert [(one.peer, one.seq, one.body) for one in found.dead] == dead

    @invariant()
    def all_is_as_the_messages_say(self) -> None:
        lab, states = self.lab, self.states()
        rows, heap = self.table("rows", Line), self.table("heap", int)
        seen = {name: state.get("seen", []) for name, state in states.items()}
        seen["rows"] = rows["order"].ids if rows else []
        seen["heap"] = [key for key in heap if key != "#"]
        assert states["keeper"]["starts"] == 1
        assert heap == ({one: at for at, one in enumerate(seen["heap"])} | {"#": len(seen["heap"])} if heap else {})
        folded: dict[str, Line] = {}
        for one in seen["rows"]:
            change(folded, one)
        assert list(rows.items()) == list(folded.items())

        traces = Counter((name, one) for name, ids in seen.items() for one in ids)
        assert set(traces.values()) <= {1}, "handled twice"
        letters = self.letters()
        assert len(letters) == len(set(letters))
        orders = {}
        for came in self.came[GATEWAY][: self.link(GATEWAY).inbound.watermark]:
            if isinstance(came, Order):
                orders.update(dict.fromkeys(came.ids, came.action))

        done: list[tuple[str, str]] = []  # handler, id
        waiting = answers = 0
        dead: set[str] = set()
        fed = states["ticker"].get("fed", 0)
        begun = [f"ticker{n}" for n in range(1, fed + 1)]
        for peer, all_came in self.came.items():
            for came in all_came[: self.link(peer).inbound.watermark]:
                if isinstance(came, Order):
                    answers += 1
                else:
                    begun.append(came)
        while begun:
            one = begun.pop()
            item = self.items[one]
            targets = ("ticker",) if item.kind == "tick" else TARGETS[item.kind]
            expected = {(name, one) for name in self.traces(one)}
            found = {trace for trace in expected if trace in traces}
            assert found in (set(), expected), "one of its handlers has handled it, another one has not"
            action = orders.get(one)
            may_wait = "/" in one or action in {"requeue", "mend"}  # it was carried over, and may still be
            if item.fails and action != "mend":
                assert not found, f"{one} fails, and has left traces: {item}, {action}, {found}"
                answers += item.asked
                dead.add(one)
                if action != "drop" and one not in letters:
                    assert may_wait, f"{one} is neither handled nor a dead letter"
                    waiting += 1
                assert action != "drop" or one not in letters
                continue
            assert one not in letters
            if expected and not found:
                assert may_wait, f"{one} is neither handled nor a dead letter"
                waiting += 1
                answers += item.asked and item.fails
                continue
            for name in targets:
                traces -= Counter({(name, one): 1})
                done.append((name, one))
                for step, act in enumerate(item.acts):
                    if act[:1] in set("hdk"):
                        child = child_id(one, name, step)
                        self.items[child] = Item(act[0], script_of(act))
                        begun.append(child)
            answers += item.asked and (item.fails or "a" in item.acts)
        assert not traces, "effects of what has not happened"
        assert set(letters) <= dead, "a dead letter of what does not fail"
        for letter in lab.endpoint.dead:
            assert letter.attempts == lab.plan.limits.max_attempts
            fault = next(act for act in self.items[id_of(letter.body)].acts if act in FAILING)
            forgotten = {"killed its worker"} if lab.deaths else set()  # the attempts are known, the error is not
            assert letter.reason.split(":")[0] in REASONS[fault] | forgotten
        assert self.waiting == waiting
        self.all_was_sent(done, answers, seen)
        self.in_order(seen)

    def all_was_sent(self, done: list[tuple[str, str]], answers: int, seen: dict[str, list[str]]) -> None:
        to_p, to_r = {("keeper", "start", 1)}, set()
        for name, one in done:
            for step, act in enumerate(self.items[one].acts):
                if act in {"p", "P", "c", "b"}:
                    to_p.add((name, one, step))
                if act in {"r", "b"}:
                    to_r.add((name, one, step))
        assert self.link("p").outbound.assigned == len(to_p)
        assert self.link("r").outbound.assigned == len(to_r)
        assert self.link(GATEWAY).outbound.assigned == answers
        for peer, expected in (("p", to_p), ("r", to_r)):
            got = [(one[1], one[0], one[2]) for one in self.received[peer] if one is not None]
            assert len(got) == len(set(got)), "sent twice"
            assert set(got) <= expected
            last: dict[tuple[str, str], int] = {}
            for name, one, step in got:
                assert last.get((name, one), -1) < step, "not in the order in which it was sent"
                last[name, one] = step
        for one in self.received["p"]:
            if one is not None and len(one) > 4 and one[3]:
                assert seen[one[1]][one[3] - 1] == one[4], "it has seen what never was"
        assert len(self.received[GATEWAY]) == len(set(self.received[GATEWAY]))
        for kind, request in self.received[GATEWAY]:
            came = self.came[GATEWAY][request - 1]
            if isinstance(came, Order):
                assert kind == "outcome"
            else:
                assert kind == ("failure" if self.items[came].fails else "answer")

    def in_order(self, seen: dict[str, list[str]]) -> None:
        """What came by one link was handled in the order in which it came, but for what was a dead letter."""
        requeued = {one for came in self.came[GATEWAY] if isinstance(came, Order) for one in came.ids}
        for ids in seen.values():
            sent: dict[tuple[str, str], list[int]] = {}  # from handler to handler, caused by one link
            for one in ids:
                cause, _, rest = one.partition("/")
                if rest and "/" not in rest and not {one, cause} & requeued:
                    peer = cause.rstrip("0123456789")
                    numbers = sent.setdefault((peer, rest.rstrip("0123456789") + self.items[one].kind), [])
                    numbers.append(int(cause.removeprefix(peer)))
            assert all(numbers == sorted(numbers) for numbers in sent.values()), (
                "one that was carried over was overtaken"
            )
            for peer in (*FEEDS, "ticker"):
                numbers = [
                    int(one.removeprefix(peer))
                    for one in ids
                    if one.startswith(peer) and "/" not in one and one not in requeued
                ]
                assert numbers == sorted(numbers)


def id_of(body: bytes) -> str:
    found: str = msgspec.msgpack.decode(body)[0]
    return found


def told(peer: str, count: int, flags: int, body: bytes) -> Iterator[Any]:
    """What a record says; None for what is not in it, but in a claim."""
    if peer == GATEWAY:
        assert flags & FLAG_REPLY
        kind = "outcome" if flags & FLAG_COMMAND else "failure" if flags & FLAG_ERROR else "answer"
        yield kind, request_of(body)
    elif flags & FLAG_CLAIM:
        yield from [None] * count
    else:
        yield from msgspec.msgpack.decode(body)


PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]  # to explain takes very long


class MoreTransactions(Transactions):
    pass


Transactions.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, derandomize=True, deadline=None, phases=PHASES
)
MoreTransactions.TestCase.settings = settings(max_examples=2000, stateful_step_count=50, deadline=None, phases=PHASES)
TestTransactions = Transactions.TestCase
TestMoreTransactions = pytest.mark.long(MoreTransactions.TestCase)
