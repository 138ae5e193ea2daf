"""Messages that are not MessagePack: as elements, in runs, and through real systems, also while workers are killed."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import (
    JSON,
    PICKLE,
    RAW,
    BadMessage,
    Codec,
    Handler,
    Message,
    State,
    System,
    Topology,
    TopologyError,
    handle,
)
from actors.codec import RunCodec
from actors.codec_runs import CodecInlet, CodecRuns
from actors.codecs import RESERVED
from actors.dead_letters import DeadLetterStatus, _opened, _payload, collect
from actors.dead_letters_view import letter_lines
from actors.errors import BadRecord, CodecRefused, MessageTooLarge
from actors.letter_commands import requeued
from actors.sealed import EXT, head, is_sealed, unseal
from bus import Block, Field
from persist import read

from .waiting import until


class Order(Message):
    n: int
    text: str = ""
    prices: tuple[float, ...] = ()


class Blob(Message):
    data: bytes


class View(Message):
    data: memoryview


@dataclass
class Plot:
    """No Message, and its values can change."""

    n: int
    points: list[tuple[int, int]]


class Upper:
    """A codec as a user writes one: text in capitals, and it refuses some."""

    name = "upper-1"

    def accepts(self, type_: type, /) -> str | None:
        return None if type_ is str else "it is for text"

    def encode(self, message: Any, /) -> bytes:
        if "cannot" in message:
            raise ValueError("not this one")
        return str(message).upper().encode()

    def decode(self, data: memoryview, type_: type, /) -> Any:
        text = bytes(data).decode()
        if "BROKEN" in text:
            raise ValueError("not this one either")
        if "DEADLY" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return 7 if "SEVEN" in text else text


class Wrong(Upper):
    """Returns no bytes."""

    name = "wrong"

    def encode(self, message: Any, /) -> Any:
        return str(message)


orders = st.builds(
    Order, st.integers(-(2**63), 2**63 - 1), st.text(), st.lists(st.floats(allow_nan=False)).map(tuple)
)  # fmt: skip
CASES: dict[str, tuple[type, Codec, st.SearchStrategy[Any]]] = {
    "json": (Order, JSON, orders.filter(lambda one: all(abs(price) < float("inf") for price in one.prices))),
    "pickle": (Order, PICKLE, orders),
    "pickled plots": (Plot, PICKLE, st.builds(Plot, st.integers(), st.lists(st.tuples(st.integers(), st.integers())))),
    "pickled dates": (datetime.datetime, PICKLE, st.datetimes()),
    "bytes": (bytes, RAW, st.binary(max_size=70_000)),
    "views": (memoryview, RAW, st.binary().map(memoryview)),
    "blobs": (Blob, RAW, st.builds(Blob, st.binary())),
    "blobs of views": (View, RAW, st.builds(View, st.binary().map(memoryview))),
    "a user's": (str, Upper(), st.just("SPAM")),
}


# Elements


@given(st.sampled_from(["json", "x", "a" * 64]), st.binary(max_size=300) | st.integers(0, 70_000).map(bytes))
def test_what_was_sealed_is_opened(name: str, payload: bytes) -> None:
    element = head(name.encode(), len(payload)) + payload
    opened = unseal(element)
    assert (opened.codec, bytes(opened.payload)) == (name, payload)
    assert is_sealed(element)
    assert msgspec.msgpack.decode(element) == msgspec.msgpack.Ext(EXT, bytes([len(name)]) + name.encode() + payload)


@given(st.binary(max_size=40))
def test_what_is_no_element_is_a_bad_record_and_nothing_else(data: bytes) -> None:
    try:
        opened = unseal(data)
    except BadRecord:
        return
    assert is_sealed(data)
    assert len(opened.payload) < len(data)


def test_elements_of_any_length_of_extension_are_read() -> None:
    """Whoever wrote them may have taken another form of the same."""
    for data in (b"\x01x", b"\x01x12", b"\x03abc1234", b"\x02ab" + bytes(13)):
        opened = unseal(msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT, data)))
        assert bytes(opened.payload) == data[1 + data[0] :]


@given(orders)
def test_no_message_is_taken_for_an_element(order: Order) -> None:
    assert not is_sealed(msgspec.msgpack.encode(order))


# Runs


@pytest.mark.parametrize("case", CASES)
def test_every_codec_gives_back_what_was_sent(case: str) -> None:
    type_, codec, values = CASES[case]
    runs, inlet = CodecRuns(type_, codec), CodecInlet(type_, codec)

    @given(st.lists(values, max_size=5))
    def check(messages: list[Any]) -> None:
        body = runs.join([runs.encode_one(message) for message in messages])
        got: list[Any] = []
        for element in inlet.decode_run(memoryview(body)):
            inlet.calling(got.append, batch=False)(inlet.decode_one(element))
        assert got == messages
        inlet.calling(got.append, batch=True)(inlet.decode_run(memoryview(body)))
        assert got.pop() == messages
        assert [type(one) for one in got] == [type_] * len(messages)

    check()


def test_a_view_is_of_the_message_itself_and_cannot_be_written() -> None:
    runs = CodecRuns(View, RAW)
    element = runs.encode_one(View(memoryview(b"spam")))
    data = runs.decode_one(memoryview(element)).data
    assert data.readonly
    assert data.obj is element


def test_a_run_of_a_codec_is_cut_like_any_other() -> None:
    runs = CodecRuns(bytes, RAW)
    items = [runs.encode_one(bytes([n]) * 50) for n in range(40)]
    parts = runs.split_run(items, 500)
    assert sum(count for count, _ in parts) == 40
    assert [one for _, body in parts for one in runs.decode_run(body)] == [bytes([n]) * 50 for n in range(40)]
    with pytest.raises(MessageTooLarge) as caught:
        runs.split_run([runs.encode_one(bytes(600))], 500)
    assert caught.value.type == "builtins.bytes"


@pytest.mark.parametrize(
    ("codec", "type_", "message", "reason"),
    [
        (Upper(), str, "this cannot go", "codec 'upper-1': ValueError: not this one"),
        (Wrong(), str, "text", "codec 'wrong': encode returned str, not bytes"),
        (JSON, Order, Order("seven"), "codec 'json': Expected `int`, got `str`"),  # type: ignore[arg-type]
        (JSON, Order, Order(1, prices=(float("nan"),)), "codec 'json': Expected `float`, got `null`"),
        (RAW, Blob, Blob("text"), "codec 'raw': expected bytes, got str"),  # type: ignore[arg-type]
        (PICKLE, Plot, Plot(1, (point for point in [(0, 0)])), "codec 'pickle': "),  # type: ignore[arg-type]
    ],
)
def test_what_a_codec_cannot_encode_is_the_senders_fault(codec: Codec, type_: type, message: Any, reason: str) -> None:
    with pytest.raises(BadMessage) as caught:
        CodecRuns(type_, codec).encode_one(message)
    assert caught.value.reason.startswith(reason)
    assert caught.value.type.endswith(type_.__qualname__)


def test_what_another_codec_has_made_is_refused_not_read() -> None:
    as_json = CodecRuns(Order, JSON).encode_one(Order(1))
    with pytest.raises(CodecRefused) as caught:
        CodecRuns(Order, PICKLE).decode_one(as_json)
    assert (caught.value.codec, caught.value.expected) == ("json", "pickle")
    pickled = CodecRuns(Order, PICKLE).encode_one(Order(1))
    with pytest.raises(CodecRefused) as caught:
        RunCodec(Order).decode_one(pickled)
    assert (caught.value.codec, caught.value.expected) == ("pickle", "msgpack")


def test_messages_from_before_their_class_had_a_codec_are_read() -> None:
    plain = RunCodec(Order).encode_one(Order(3))
    assert CodecRuns(Order, JSON).decode_one(plain) == Order(3)
    with pytest.raises(CodecRefused):
        CodecRuns(str, Upper()).decode_one(msgspec.msgpack.encode("text"))


def test_a_codec_that_makes_something_else_is_a_bad_record_with_its_name() -> None:
    runs = CodecRuns(str, Upper())
    with pytest.raises(BadRecord, match=r"codec 'upper-1' has made a builtins\.int of a builtins\.str"):
        runs.decode_one(runs.encode_one("seven"))


def test_the_class_of_a_pickle_is_the_topologys() -> None:
    """So that a class of a script is the same one after a restart, and no reference to a class can stand for it."""
    element = CodecRuns(Plot, PICKLE).encode_one(Plot(1, []))
    assert b"Plot" not in element

    class Other:
        pass

    assert type(CodecRuns(Other, PICKLE).decode_one(element)) is Other


# Declaring


class Sender(Handler):
    def on_start(self) -> None: ...


class Getter(Handler):
    def on_start(self) -> None: ...


def declared(type_: Any, codec: Any) -> Topology:
    app = Topology("codecs")
    app.worker("work", sender=Sender, getter=Getter)
    app.codec(type_, codec)
    return app


class NoDecode:
    name = "half"

    def accepts(self, type_: type, /) -> str | None: ...

    def encode(self, message: Any, /) -> bytes: ...  # type: ignore[empty-body]


class Named(Upper):
    def __init__(self, name: Any) -> None:
        self.name = name


@pytest.mark.parametrize(
    ("type_", "codec", "text"),
    [
        ("Order", JSON, "codec for 'Order', which is no class"),
        (Message, JSON, "which is no class of messages"),
        (Plot, JSON, "codec 'json' cannot carry Plot: JSON is for subclasses of Message"),
        (Order, RAW, "codec 'raw' cannot carry Order: raw is for bytes"),
        (str, Upper, "is a class; give an instance: Upper()"),
        (str, NoDecode(), "has no decode"),
        (str, object(), "has no name, accepts, encode, decode"),
        (str, Named("Spam"), "has the name 'Spam', which cannot be used"),
        (str, Named(3), "has the name 3, which cannot be used"),
        (str, Named("json"), "which is that of a codec of the runtime"),
        (str, Named("msgpack"), "which is that of a codec of the runtime"),
        (int, Upper(), "codec 'upper-1' cannot carry int: it is for text"),
    ],
)
def test_mistakes_about_codecs_are_told_before_anything_starts(type_: Any, codec: Any, text: str) -> None:
    with pytest.raises(TopologyError) as caught:
        declared(type_, codec).compile()
    assert text in str(caught.value)


def test_two_codecs_of_one_class_and_two_of_one_name_are_mistakes() -> None:
    app = declared(Order, JSON)
    app.codec(Order, PICKLE)
    app.codec(str, Upper())
    app.codec(int, type("Another", (Wrong,), {"name": "upper-1", "accepts": lambda self, type_: None})())
    with pytest.raises(TopologyError) as caught:
        app.compile()
    assert [problem.kind for problem in caught.value.problems] == ["bad-codec", "bad-codec"]
    assert "Order has two codecs" in str(caught.value)
    assert "has the name 'upper-1', which another codec has too" in str(caught.value)


def test_a_class_without_a_codec_that_is_no_message_is_a_mistake_that_names_the_way_out() -> None:
    class Takes(Handler):
        @handle
        def on_plot(self, plot: Plot) -> None: ...

    app = Topology("codecs")
    app.worker("work", takes=Takes)
    app.external("takes")
    with pytest.raises(TopologyError, match=r"topology\.codec\(Plot, \.\.\.\)"):
        app.compile()
    app.codec(Plot, PICKLE)
    assert app.compile().codec(Plot) is PICKLE


def test_fingerprints_tell_codecs_apart_and_are_what_they_were_without() -> None:
    plain = Topology("codecs")
    plain.worker("work", sender=Sender)
    one, other = (declared(Order, codec) for codec in (JSON, PICKLE))
    assert one.compile().fingerprint != other.compile().fingerprint
    assert len(RESERVED) == 4


# Systems


class Done(State):
    items: list[str] = []


class Get(Message):
    pass


class Seen(Message):
    items: list[str]


class Sink(Handler):
    """Notes what came, in order, and answers with it."""

    state: Done

    @handle
    def on_order(self, order: Order) -> None:
        self.state.items.append(f"order {order.n}")

    @handle
    def on_plot(self, plot: Plot) -> None:
        self.state.items.append(f"plot {plot.n} {plot.points}")
        plot.points.append((0, 0))

    @handle
    def on_text(self, text: str) -> None:
        self.state.items.append(text)

    @handle
    def on_bytes(self, data: bytes) -> None:
        self.state.items.append(data.hex())

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.items))


class Pass(Handler):
    """Passes everything on."""

    @handle
    def on_any(self, message: Order | Plot | str | bytes) -> None:
        self.send(message)
        if isinstance(message, Plot):
            message.points.append((9, 9))  # it is sent as it was


class Strict(Sink, max_attempts=1):
    pass


class Stubborn(Sink, on_error="retry"):
    pass


class Brittle(Sink, on_error="crash"):
    pass


TYPES = (Order, Plot, str, bytes)


def system_of(directory: Path, sink: Any = Sink, order: Codec | None = JSON, **options: Any) -> Topology:
    app = Topology("codecs", directory=directory, **({"max_restarts": 1000, "backoff_first": 0.001} | options))
    app.worker("pass", passing=Pass)
    app.worker("work", sink=sink, beside=Sink)
    app.external("passing")
    app.external("sink")
    app.external("beside")
    for type_ in TYPES:
        app.route("passing", type_, to=["sink", "beside"])
    if order is not None:
        app.codec(Order, order)
    app.codec(Plot, PICKLE)
    app.codec(str, Upper())
    app.codec(bytes, RAW)
    return app


def seen(system: System, handler: str = "sink") -> list[str]:
    return system.ask(handler, Get(), reply=Seen).items


def came(system: System, handler: str, count: int) -> bool:
    return len(seen(system, handler)) == count


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


EXPECTED = ["order 1", "plot 2 [(1, 2)]", "TEXT", "0102"]


def send_all(send: Callable[[Any], None]) -> None:
    for message in (Order(1), Plot(2, [(1, 2)]), "text", b"\1\2"):
        send(message)


@pytest.mark.parametrize("level", ["memory", "process"])
def test_messages_of_all_codecs_arrive_in_order_and_as_they_were_sent(directory: Path, level: str) -> None:
    with system_of(directory, durability=level).start() as system:
        send_all(lambda message: system.send("passing", message))
        for handler in ("sink", "beside"):
            until(partial(came, system, handler, 4), "all of them")
            assert seen(system, handler) == EXPECTED  # what one handler did to a message, the other has not got


def test_answers_may_have_a_codec(directory: Path) -> None:
    class Answering(Handler):
        @handle
        def on_get(self, get: Get) -> None:
            self.reply(Plot(7, [(1, 1)]))

    app = Topology("answers", directory=directory)
    app.worker("work", answering=Answering)
    app.external("answering")
    app.codec(Plot, PICKLE)
    with app.start() as system:
        assert system.ask("answering", Get(), reply=Plot) == Plot(7, [(1, 1)])


def test_what_cannot_be_encoded_is_refused_where_it_is_sent(directory: Path) -> None:
    with system_of(directory).start() as system:
        with pytest.raises(BadMessage, match="codec 'upper-1': ValueError: not this one"):
            system.send("passing", "this cannot go")
        system.send("sink", "it goes on")
        assert seen(system) == ["IT GOES ON"]


def letters(system: System) -> list[DeadLetterStatus]:
    return list(collect(system.directory, tracebacks=True, payloads=True).dead_letters)


@pytest.mark.parametrize("text", ["broken", "deadly", "seven"])
def test_what_cannot_be_decoded_is_a_dead_letter_and_its_neighbours_take_effect_once(
    directory: Path, text: str
) -> None:
    with system_of(directory).start() as system:
        for n in range(30):
            system.send("passing", text if n == 17 else f"n{n}")
        until(lambda: len(letters(system)) == 1 and len(seen(system)) == 29, "the others", 60)
        assert seen(system) == [f"N{n}" for n in range(30) if n != 17]
        (letter,) = letters(system)
        assert (letter.type, letter.attempts, letter.codec) == ("builtins.str", 3, "upper-1")
        assert letter.payload_hex == text.upper().encode().hex()
        if text == "deadly":
            assert letter.reason == "killed its worker"
        else:
            assert "codec 'upper-1'" in letter.reason
        if text == "broken":
            assert "ValueError: not this one either" in letter.traceback
        assert f"{letter.type}, {letter.size_bytes} B, by codec upper-1" in "\n".join(letter_lines(letter, True))


def pending(directory: Path, order: Codec | None, count: int = 5) -> None:
    """Orders that wait in the journal of a system that was killed."""
    system = system_of(directory, order=order).start()
    try:
        system.pause("work")
        system.send("sink", "first")
        for n in range(count):
            system.send("sink", Order(n))
        system.send("sink", "text")
    finally:
        system.stop(drain=False)


@pytest.mark.parametrize(
    ("sink", "before", "after"), [(Strict, PICKLE, None), (Stubborn, PICKLE, JSON), (Brittle, JSON, PICKLE)]
)
def test_what_the_topology_no_longer_decodes_becomes_dead_letters_in_order_and_is_not_run(
    directory: Path, sink: Any, before: Codec, after: Codec | None
) -> None:
    pending(directory, before)
    with system_of(directory, sink, order=after).start() as system:
        until(lambda: seen(system) == ["FIRST", "TEXT"], "what comes behind")
        found = letters(system)
        assert [(one.seq, one.attempts, one.codec) for one in found] == [(n, 1, before.name) for n in range(2, 7)]
        expected = "msgpack" if after is None else after.name
        for one in found:
            assert f"encoded by codec {before.name!r}, but the topology gives this class {expected!r}" in one.reason
        assert system.status().worker("work").restarts == 0
    # Under a topology that names the codec again, they are as good as ever.
    with system_of(directory, order=before).start() as system:
        changes = system.requeue_dead_letters([(one.worker, one.peer, one.seq) for one in found])
        assert {change.done for change in changes} == {"requeued"}
        until(lambda: len(seen(system)) == 7, "the orders")
        assert seen(system) == ["FIRST", "TEXT", *(f"order {n}" for n in range(5))]
        assert not letters(system)


def test_what_waits_from_before_a_class_had_a_codec_is_handled(directory: Path) -> None:
    pending(directory, None)
    with system_of(directory, order=JSON).start() as system:
        until(lambda: len(seen(system)) == 7, "the orders")
        assert seen(system) == ["FIRST", *(f"order {n}" for n in range(5)), "TEXT"]


def test_a_letter_shows_what_can_be_shown() -> None:
    """Nothing is decoded that could be code."""
    shown = {}
    for name, type_, codec, message in (
        ("json", Order, JSON, Order(1, "spam")),
        ("raw", bytes, RAW, b"\xff"),
        ("pickle", Order, PICKLE, Order(1)),
    ):
        element = CodecRuns(type_, codec).encode_one(message)
        opened, _, encoded = _opened(element, Path())
        shown[name] = _payload(opened, encoded)
        assert requeued(element) == CodecRuns(type_, codec).join([element])
    assert shown["json"] == ([1, "spam", []], "")
    assert shown["raw"] == (None, "ff")
    assert shown["pickle"][0] is None
    assert _opened(b"\xc7\x00", Path()) == ("", 2, b"\xc7\x00")


class Together(Sink):
    @handle(batch=True)
    def on_text(self, texts: list[str]) -> None:  # type: ignore[override]
        self.state.items.extend(texts)


def test_a_batch_handler_gets_decoded_messages_and_what_cannot_be_is_one_dead_letter(directory: Path) -> None:
    with system_of(directory, Together).start() as system:
        system.pause("work")
        for n in range(12):
            system.send("sink", "broken" if n == 5 else f"n{n}")
        system.resume("work")
        until(lambda: len(seen(system)) == 11 and letters(system), "the others", 30)
        assert seen(system) == [f"N{n}" for n in range(12) if n != 5]
        assert [(one.handler, one.attempts) for one in letters(system)] == [("sink", 3)]


class Numbers(State):
    n: int = 0
    wrong: list[str] = []


class Told(Message):
    n: int
    wrong: list[str]


class Counter(Handler):
    state: Numbers

    @handle
    def on_order(self, order: Order) -> None:
        if order.n != self.state.n + 1:
            self.state.wrong.append(f"{order.n} after {self.state.n}")
        self.state.n = order.n

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Told(self.state.n, self.state.wrong))


class Stage(Counter):
    def on_order(self, order: Order) -> None:
        super().on_order(order)
        self.send(order)


class Source(Handler):
    """Sends so many for each file in a folder."""

    state: Numbers

    def __init__(self, folder: Path, portion: int) -> None:
        self.folder, self.portion = folder, portion

    def on_loop(self) -> float:
        last = self.portion * len(os.listdir(self.folder))
        for _ in range(min(20, last - self.state.n)):
            self.state.n += 1
            self.send(Order(self.state.n, "x" * (self.state.n % 50)))
        return 0.001


def pid_of(block: Block) -> int:
    """As soon as it has a process."""
    while True:
        until(lambda: block.get(Field.PID), "a process")
        if pid := block.get(Field.PID):
            return pid


def test_kills_lose_double_and_reorder_nothing_of_a_codec(directory: Path) -> None:
    portion, kills, chance = 2000, 10, random.Random(5)
    folder = directory.with_name("portions")
    folder.mkdir()
    app = Topology(
        "kills", directory=directory, max_restarts=10**6, backoff_first=0.001, backoff_max=0.01, max_attempts=1000
    )
    app.worker("first", source=Source.spec(folder, portion))
    app.worker("second", stage=Stage)
    app.worker("third", counter=Counter)
    app.external("counter")
    app.external("stage", Get)
    app.route("source", Order, to="stage")
    app.route("stage", Order, to="counter")
    app.codec(Order, JSON)
    with app.start() as system:

        def told() -> Told:
            return system.ask("counter", Get(), reply=Told)

        for kill in range(kills):
            (folder / str(kill)).touch()
            until(partial(lambda before: told().n > before, portion * kill), "some of the next ones")
            pid = pid_of(system.block(chance.choice(["first", "second", "third"])))
            with contextlib.suppress(ProcessLookupError):  # it has just ended, which is told later
                os.kill(pid, signal.SIGKILL)
        until(lambda: told().n == portion * kills, "the last one")
        assert not told().wrong
        assert not read(system.directory / "journals" / "third").dead
