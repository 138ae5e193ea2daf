"""Sends of a transaction: with a packer and without one the same messages leave, in the same order, or none."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec import FLAG_CLAIM, RunCodec
from actors.errors import BadMessage, MessageTooLarge, UnroutedMessage
from actors.message import Message
from actors.outgoing import EncodedRun, Lane, LocalSend, Outgoing
from actors.tickets import Large
from tests.bus.implementations import needs_c

LARGEST, RUN, CLAIM = 300, 120, 1000
OWN = 0


class Plain(Message):
    text: str
    number: int


class Data(Message):
    data: bytes


class Loose(Message):
    anything: Any


TYPES = (Plain, Data, Loose)
ROUTES = {Plain: ((1,), False), Data: ((1, 2), False), Loose: ((2,), True)}
packs = pytest.mark.parametrize("packs", [False, pytest.param(True, marks=needs_c)])


class Word(enum.Enum):
    """Encodes to what a text encodes to, and is none."""

    C = "c"
    E = "e"


class Sending:
    """One handler, `desk`, with a route for each class."""

    def __init__(self, packs: bool, claim: int = 0) -> None:
        self.out = Outgoing(LARGEST, RUN, claim, packs=packs)
        self.puts: dict[type, Any] = {}
        self.lanes = {
            type_: Lane(
                SimpleNamespace(id=number, source="desk", message=type_),  # type: ignore[arg-type]
                RunCodec(cast(type[Message], type_)), peers, local, self.out, self.puts,
            )
            for number, (type_, (peers, local)) in enumerate(ROUTES.items())
        }  # fmt: skip
        self.send = self.out.sender("desk", self.puts)

    def try_to_send(self, message: Any) -> tuple[str, str]:
        try:
            self.send(message)
        except (BadMessage, MessageTooLarge) as error:
            return error.handler, str(error)
        return "", ""

    def leave(self) -> Any:
        """What the commit takes, by edge: (route, message); or whom the error blames that ends the transaction."""
        try:
            runs = self.out.encode(OWN)
        except (BadMessage, MessageTooLarge) as error:
            return error.handler, str(error)
        return by_edge(runs)


def by_edge(runs: list[EncodedRun]) -> dict[int, list[tuple[int, bytes]]]:
    edges: dict[int, list[tuple[int, bytes]]] = {}
    for run in runs:
        if run.flags & FLAG_CLAIM:
            assert isinstance(run.body, Large)
            messages = [bytes(run.body.whole())]
        else:
            assert isinstance(run.body, bytes)
            messages = [bytes(one) for one in msgspec.msgpack.decode(run.body, type=list[msgspec.Raw])]
            assert len(run.body) <= RUN or len(messages) == 1
        assert run.length == len(messages)
        for peer in run.peers:
            edges.setdefault(peer, []).extend((run.route, one) for one in messages)
    return edges


texts = st.sampled_from(["", "text", "x" * 100, "x" * 250, "x" * 500, "x" * 1200, Word.C, "\ud800"])
messages = st.one_of(
    st.builds(Plain, texts, st.sampled_from([0, 1, Word.C, 2**63, 2**64, "no number"])),
    st.builds(Plain, st.just("plain"), st.integers(0, 100)),
    st.builds(Plain, st.just("plain"), st.integers(0, 100)),
    st.builds(Data, st.sampled_from([b"", b"data", b"x" * 299, b"x" * 500, b"x" * 1200, bytearray(b"a"), "text"])),
    st.builds(Loose, st.sampled_from([1, [1], "x" * 400, object()])),
)


@needs_c
@given(st.lists(messages, max_size=30), st.sampled_from([0, CLAIM]))
def test_with_a_packer_the_same_leaves_as_without(sent: list[Message], claim: int) -> None:
    with_packer, without = Sending(True, claim), Sending(False, claim)
    for message in sent:
        told = with_packer.try_to_send(message)
        assert told == without.try_to_send(message)
        assert told[0] == ("desk" if told[1] else "")
        assert bool(with_packer.out) == bool(without.out)
        assert with_packer.out.heavy == without.out.heavy
    left = with_packer.leave()
    assert left == without.leave()
    assert isinstance(left, dict) or left[0] == "desk"
    assert [(one.lane.route, one.message) for one in with_packer.out.local] == [
        (one.lane.route, one.message) for one in without.out.local
    ]
    for one in (with_packer, without):
        one.out.clear()
        assert one.leave() == {}
        one.send(Plain("after", 1))
        assert one.leave() == {1: [(0, msgspec.msgpack.encode(["after", 1]))]}


@packs
def test_order_holds_on_each_edge(packs: bool) -> None:
    one = Sending(packs)
    sent = [Plain("a", 1), Plain("b", 2), Data(b"c"), Plain("d", 3), Loose(4), Data(b"e"), Data(b"f"), Plain("g", 5)]
    for message in sent:
        one.send(message)
    assert [run.length for run in one.out.encode(OWN)][:5] == [2, 1, 1, 1, 2]
    edges = one.leave()
    for peer in (1, 2):
        routed = [(TYPES.index(type(m)), msgspec.msgpack.encode(m)) for m in sent if peer in ROUTES[type(m)][0]]
        assert edges[peer] == routed
    assert one.leave() == edges, "to encode changes nothing"


@packs
def test_what_is_not_plain_keeps_its_place_among_what_is(packs: bool) -> None:
    one = Sending(packs)
    texts = ["a", "b", Word.C, "d", Word.E, "f"]
    for text in texts:
        one.send(Plain(text, 1))  # type: ignore[arg-type]
    assert one.leave()[1] == [(0, msgspec.msgpack.encode([text, 1])) for text in texts]
    one.out.clear()
    one.send(Plain("again", 1))
    assert [run.length for run in one.out.encode(OWN)] == [1]


@packs
def test_a_message_that_does_not_fit_is_blamed_on_its_handler(packs: bool) -> None:
    one = Sending(packs)
    one.send(Plain("good", 1))
    one.send(Plain("bad", "number"))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(BadMessage, match="number") as caught:
            one.out.encode(OWN)
        assert caught.value.handler == "desk"
    one.out.clear()
    with pytest.raises(BadMessage, match="data"):
        one.send(Data("text"))  # type: ignore[arg-type]
    assert not one.out, "what is refused at once is not sent"
    with pytest.raises(MessageTooLarge):
        one.send(Data(b"x" * LARGEST))


@packs
def test_bytes_that_could_change_are_encoded_as_they_were(packs: bool) -> None:
    one, data = Sending(packs), bytearray(b"as it was")
    for sent in (b"first", data, b"last"):
        one.send(Data(sent))  # type: ignore[arg-type]
    data[:] = b"something"
    assert one.leave()[1] == [(1, msgspec.msgpack.encode([part])) for part in (b"first", b"as it was", b"last")]


def test_an_array_that_is_sent_is_told_how_rows_are() -> None:
    error = UnroutedMessage("feed", "ndarray", ("Tick",))
    assert "feed" in str(error)
    assert "rows of a fixed message are sent by `with self.reserve(" in str(error)


@packs
def test_a_type_without_a_route_is_told_with_those_that_have_one(packs: bool) -> None:
    class Nowhere(Message):
        pass

    one = Sending(packs)
    with pytest.raises(UnroutedMessage) as caught:
        one.send(Nowhere())
    assert caught.value.handler == "desk"
    assert "Plain" in str(caught.value)
    assert "Nowhere" in str(caught.value)


@packs
def test_what_was_sent_only_grows(packs: bool) -> None:
    """An `on_loop` that has sent nothing is told by it."""
    one = Sending(packs)
    before = one.out.sent
    for message in (
        *[Plain("a", 1)] * 5,
        Data(b""),
        Plain("a", 1),
        Loose(1),
        *[Data(b"")] * 3,
        Loose(2),
        Plain("b", 1),
    ):
        one.send(message)
        assert one.out.sent > before
        before = one.out.sent


@packs
def test_local_handlers_get_the_message_itself_or_its_encoding(packs: bool) -> None:
    one = Sending(packs)
    one.send(loose := Loose([1]))
    assert list(one.out.local) == [LocalSend(one.lanes[Loose], msgspec.msgpack.encode(loose))]
    assert one.leave() == {peer: [(2, msgspec.msgpack.encode(loose))] for peer in (2, OWN)}


@needs_c
def test_a_send_that_is_interrupted_while_it_opens_a_run_loses_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sending = Sending(True)
    for n in range(2):
        sending.send(Plain("before", n))
    sending.out.clear()
    opens = Outgoing.open

    def interrupted(*_: Any) -> None:
        raise TimeoutError("time is up")

    monkeypatch.setattr(Outgoing, "open", interrupted)
    with pytest.raises(TimeoutError):
        sending.send(Plain("a", 1))
    monkeypatch.setattr(Outgoing, "open", opens)
    sending.out.clear()
    assert not sending.out
    sending.send(Plain("b", 2))
    assert sending.leave() == {1: [(0, msgspec.msgpack.encode(Plain("b", 2)))]}


@packs
def test_what_stays_in_the_worker_counts_when_it_is_sent_also_once_it_is_handled(packs: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("actors.outgoing.HEAVY_BYTES", 100)
    sending = Sending(packs)
    told: list[bool] = []
    sending.out.full = lambda: told.append(True)
    for count in range(1, 5):
        sending.send(Loose(["x" * 29]))  # 32 bytes
        sending.out.local.popleft()
        assert sending.out.heavy == bool(told) == (count == 4)
    sending.out.clear()
    assert not sending.out.heavy


@pytest.mark.parametrize(
    ("packs", "message"),
    [
        (False, Data(b"x" * 500)),
        (False, Plain("x" * 500, 1)),
        pytest.param(True, Data(b"x" * 500), marks=needs_c),
        pytest.param(True, Plain("x" * 500, 1), marks=needs_c),
    ],
)
def test_what_gets_a_claim_counts_when_it_is_sent(packs: bool, message: Message, monkeypatch: Any) -> None:
    monkeypatch.setattr("actors.outgoing.HEAVY_BYTES", 1000)
    sending = Sending(packs, CLAIM)
    heavy: list[bool] = []
    told: list[int] = []
    sending.out.full = lambda: told.append(len(heavy))
    for _ in range(2):
        sending.send(message)
        heavy.append(sending.out.heavy)
    assert heavy == [False, True]
    assert told == [1]
    peers = ROUTES[type(message)][0]
    assert sending.leave() == {
        peer: [(TYPES.index(type(message)), msgspec.msgpack.encode(message))] * 2 for peer in peers
    }
