"""Fixed messages between workers: written and read in place, exactly once, and never seen after their time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec.structs import replace

from actors import (
    ExitStatus,
    FixedMessage,
    Handler,
    HandlerSpec,
    Message,
    Rows,
    Size,
    StartFailed,
    State,
    System,
    TooManyRows,
    Topology,
    ViewEscaped,
    handle,
)
from actors.dead_letters import collect
from actors.errors import LayoutMismatch, UnroutedMessage
from actors.fixed import f8, layout_of, u4, u8
from actors.worker import check_layouts
from bus import Field, WorkerState
from persist import read

from .waiting import until

LEVELS = ("memory", "process", "power")
KEPT: list[Any] = []  # where a rollback does not reach


class Tick(FixedMessage):
    symbol: Annotated[bytes, Size(16)]
    price: f8
    number: u8
    flag: u4


class Mark(Message):
    n: int


class Go(Message):
    """`steps`: what to send, one after the other: a number of rows, or 0 for a Mark."""

    steps: tuple[int, ...]
    first: int = 0
    flagged: int = -1
    how: str = ""


class Get(Message): ...


class Seen(Message):
    rows: int
    wrong: int  # with something missing before
    next: int
    total: int
    events: tuple[int, ...]


class Done(State):
    rows: int = 0
    next: int = 0
    wrong: int = 0
    total: int = 0
    events: list[int] = []


class Feed(Handler, max_attempts=2):
    @handle
    def on_go(self, go: Go) -> None:
        number = go.first
        for count in go.steps:
            if not count:
                self.send(Mark(number))
                continue
            with self.reserve(Tick, count) as rows:
                assert not rows["flag"].any()
                rows["number"] = range(number, number + count)
                rows["symbol"], rows["price"] = b"RNGL", 0.5
                if number <= go.flagged < number + count:
                    rows["flag"][go.flagged - number] = 1
                if go.how == "inside":
                    self.send(Mark(-number))
                if go.how == "raise":
                    raise ValueError("in the block")
                if go.how == "keep":
                    self.kept = rows[1:]
                if go.how == "keep for ever":
                    KEPT.append(rows["price"])
            number += count
        if go.how == "raise behind":
            raise ValueError("behind the block")


class Sink(Handler, max_attempts=2):
    state: Done

    def __init__(self, keep: str = "") -> None:
        self.keep = keep

    @handle(batch=True)
    def on_ticks(self, ticks: Rows[Tick]) -> None:
        if self.keep and ticks["flag"].any():
            self.kept = KEEPERS[self.keep](ticks)
        numbers = ticks["number"]
        state = self.state
        state.wrong += int(numbers[0] > state.next) + int((numbers[1:] != numbers[:-1] + 1).any())
        state.next = max(state.next, int(numbers[-1]) + 1)
        state.rows += len(ticks)
        state.total += int(numbers.sum())
        state.events.append(len(ticks))

    @handle
    def on_mark(self, mark: Mark) -> None:
        self.state.events.append(-mark.n)

    @handle
    def on_get(self, get: Get) -> None:
        state = self.state
        self.reply(Seen(state.rows, state.wrong, state.next, state.total, tuple(state.events)))


KEEPERS: dict[str, Callable[[Any], object]] = {
    "rows": lambda rows: rows,
    "slice": lambda rows: [rows[1:]],
    "column": lambda rows: rows["price"],
    "record": lambda rows: rows[0],
    "closure": lambda rows: lambda: rows,
    "global": KEPT.append,
}


class One(Sink):
    """Takes them one by one."""

    @handle
    def on_ticks(self, tick: Tick) -> None:  # type: ignore[override]
        state = self.state
        if self.keep and tick.flag:
            self.kept = tick
        state.wrong += int(tick.number > state.next)
        state.next = max(state.next, int(tick.number) + 1)
        state.rows += 1
        state.total += int(tick.number)
        assert (tick.symbol, tick.price) == (b"RNGL", 0.5)


def app(
    directory: Path,
    level: str = "process",
    *,
    local: bool = False,
    keep: str = "",
    sink: type[Sink] = Sink,
    feed: type[Feed] = Feed,
    **options: Any,
) -> Topology:
    made = Topology("fixed", directory=directory / "run", durability=level, **options)
    if local:
        made.worker("w", feed=feed, sink=HandlerSpec(sink, (keep,)))
    else:
        made.worker("source", feed=feed)
        made.worker("w", sink=HandlerSpec(sink, (keep,)))
    made.route("feed", Tick, to="sink")
    made.route("feed", Mark, to="sink")
    made.external("feed", Go)
    made.external("sink", Get, Tick)
    return made


def seen(system: System) -> Seen:
    return system.ask("sink", Get(), reply=Seen)


def all_rows(system: System, count: int) -> Seen:
    until(lambda: seen(system).rows >= count, f"{count} rows", 30)
    return seen(system)


def whole(found: Seen, count: int) -> None:
    assert (found.rows, found.wrong, found.next, found.total) == (count, 0, count, count * (count - 1) // 2)


# ------------------------------------------------------------------------------------------------ delivery
@pytest.mark.parametrize("sink", [Sink, One])
@pytest.mark.parametrize(
    ("level", "local"), [("memory", False), ("memory", True), ("process", False), ("power", False)]
)
def test_rows_arrive_once_and_in_order(tmp_path: Path, level: str, local: bool, sink: type[Sink]) -> None:
    with app(tmp_path, level, local=local, sink=sink).start() as system:
        system.send("feed", Go((100, 1, 250, 3)))
        system.send("feed", Go((40,), 354))
        whole(all_rows(system, 394), 394)
        system.send("sink", Tick(b"RNGL", 0.5, 394, 0))
        whole(all_rows(system, 395), 395)
        assert system.block("w").get(Field.ROLLBACKS) == 0
        assert system.stop() is ExitStatus.OK


@pytest.mark.parametrize("implementation", ["c", "python"])
def test_what_was_reserved_together_is_one_array(
    tmp_path: Path, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGLEADER_RING", implementation)
    with app(tmp_path, "memory").start() as system:
        system.send("feed", Go((3000,)))
        assert all_rows(system, 3000).events == (3000,)


@pytest.mark.parametrize("level", ["memory", "process"])
def test_rows_keep_their_place_among_all_that_a_transaction_sends(tmp_path: Path, level: str) -> None:
    with app(tmp_path, level).start() as system:
        system.send("feed", Go((0, 10, 0, 5, 5, 0)))
        all_rows(system, 20)  # so that each of them is a transaction
        system.send("feed", Go((7, 0, 3), 20))
        all_rows(system, 30)
        system.send("feed", Go((4, 4), 30, how="inside"))
        found = all_rows(system, 38)
        assert found.wrong == 0
        assert found.events == (0, 10, -10, 5, 5, -20, 7, -27, 3, 30, 4, 34, 4)


@pytest.mark.parametrize("level", ["memory", "process"])
def test_more_rows_than_a_ring_holds_are_several_runs(tmp_path: Path, level: str) -> None:
    with app(tmp_path, level, ring_bytes=1 << 16, max_message_bytes=1 << 14).start() as system:
        system.send("feed", Go((5000, 0, 20_000)))
        found = all_rows(system, 25_000)
        whole(found, 25_000)
        assert max(found.events) * 40 < 1 << 15


def test_a_slow_receiver_gets_everything(tmp_path: Path) -> None:
    with app(tmp_path, "memory", sink=One, ring_bytes=1 << 14, max_message_bytes=1 << 12).start() as system:
        for turn in range(20):
            system.send("feed", Go((150, 50), 200 * turn))
        whole(all_rows(system, 4000), 4000)


class Held(Sink):
    """Waits at a Mark for a file to be there."""

    def on_mark(self, mark: Mark) -> None:
        until(Path(self.keep).exists, "the gate", 30)


class Echoed(Feed):
    @handle
    def on_mark(self, mark: Mark) -> None: ...


def test_rows_do_not_overtake_those_for_which_there_was_no_room(tmp_path: Path) -> None:
    """In a cycle, where who has sent too much goes on all the same."""
    gate = tmp_path / "gate"
    made = app(
        tmp_path, "memory", sink=Held, feed=Echoed, keep=str(gate), ring_bytes=1 << 14, max_message_bytes=1 << 12
    )
    made.route("sink", Mark, to="feed")
    with made.start() as system:
        block = system.block("source")
        for number, steps in enumerate([(0,), (170,), (170,), (170,), (5,), (5,)]):
            system.send("feed", Go(steps, 170 * min(max(number - 1, 0), 3) + 5 * max(number - 4, 0)))
            until(lambda: block.get(Field.HANDLED) == number + 1, "its handling")  # noqa: B023
        gate.touch()
        whole(all_rows(system, 520), 520)


class Asked(Handler):
    @handle
    def on_tick(self, tick: Tick) -> None:
        self.reply(Tick(tick.symbol, tick.price * 2, int(tick.number), 0))


def test_a_fixed_message_can_be_asked_with_and_answered_with(tmp_path: Path) -> None:
    made = Topology("asked", directory=tmp_path / "run")
    made.worker("w", asked=Asked)
    made.external("asked", Tick)
    with made.start() as system:
        assert system.ask("asked", Tick(b"A", 1.5, 7, 0), reply=Tick) == Tick(b"A", 3.0, 7, 0)


# ------------------------------------------------------------------------------------------------ failures
@pytest.mark.parametrize("how", ["raise", "raise behind"])
@pytest.mark.parametrize("level", ["memory", "process"])
def test_of_a_transaction_that_fails_no_row_is_sent(tmp_path: Path, level: str, how: str) -> None:
    with app(tmp_path, level).start() as system:
        system.send("feed", Go((10, 20), 5, how=how))
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        system.send("feed", Go((30,)))
        whole(all_rows(system, 30), 30)
        assert system.block("source").get(Field.DEATHS) == 0


class Patient(Feed, max_attempts=100):
    """Is killed while it handles this or that."""


class Tries(Feed):
    """Leaves a block by an exception, and goes on."""

    @handle
    def on_go(self, go: Go) -> None:
        try:
            with self.reserve(Tick, 10) as rows:
                rows["number"] = 99
                raise ValueError("never mind")
        except ValueError:
            super().on_go(go)


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_block_that_is_left_by_an_exception_sends_nothing(tmp_path: Path, level: str) -> None:
    with app(tmp_path, level, feed=Tries).start() as system:
        for turn in range(3):
            system.send("feed", Go((6, 4), 10 * turn))
        whole(all_rows(system, 30), 30)
        assert system.block("source").get(Field.ROLLBACKS) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_kills_lose_double_and_reorder_no_row(tmp_path: Path, level: str) -> None:
    """At `memory` only the sender is killed, as what the receiver has added up is not durable there, and what it had
    caused and not finished comes again."""
    with app(tmp_path, level, max_restarts=1000, feed=Patient).start() as system:
        blocks = [system.block(name) for name in (("source",) if level == "memory" else ("source", "w"))]
        sent = 0
        for turn in range(6):
            for _ in range(60):
                system.send("feed", Go((50, 7, 43), sent))
                sent += 100
            block = blocks[turn % len(blocks)]
            os.kill(block.get(Field.PID), signal.SIGKILL)
            deaths = turn // len(blocks) + 1
            until(lambda: block.get(Field.DEATHS) == deaths, "the death", 30)  # noqa: B023
            until(lambda: block.get(Field.STATE) == WorkerState.RUNNING, "the restart", 30)  # noqa: B023
        until(lambda: seen(system).next >= sent, f"{sent} rows", 30)
        found = seen(system)
        assert (found.next, found.wrong) == (sent, 0)
        if level != "memory":
            whole(found, sent)
        assert system.stop() is ExitStatus.OK


# ------------------------------------------------------------------------------------------------ views
@pytest.mark.parametrize("level", ["memory", "process"])
@pytest.mark.parametrize("keep", [keep for keep in KEEPERS if keep != "global"])
def test_who_keeps_a_view_has_not_handled_the_row(tmp_path: Path, keep: str, level: str) -> None:
    with app(tmp_path, level, keep=keep).start() as system:
        system.send("feed", Go((3, 2), flagged=1))
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        found = all_rows(system, 4)
        assert found.total == 0 + 2 + 3 + 4
        assert system.block("w").get(Field.DEATHS) == 0
        if level == "process":
            (letter,) = read(system.directory / "journals" / "w").dead
            assert letter.attempts == 2
            assert letter.reason.startswith("ViewEscaped: handler 'sink' kept rows of ")
            assert "rows.copy()" in letter.reason


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_record_that_is_kept_is_a_view_too(tmp_path: Path, level: str) -> None:
    with app(tmp_path, level, keep="record", sink=One).start() as system:
        system.send("feed", Go((50,), flagged=20))
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        assert all_rows(system, 49).total == sum(range(50)) - 20


def test_a_view_that_survives_the_rollback_ends_with_its_process(tmp_path: Path) -> None:
    with app(tmp_path, keep="global", max_restarts=1000).start() as system:
        system.send("feed", Go((3, 2), flagged=1))
        until(lambda: system.status().dead_letters == 1, "the dead letter", 30)
        assert all_rows(system, 4).total == 0 + 2 + 3 + 4
        block = system.block("w")
        assert block.get(Field.DEATHS) >= 1
        system.send("feed", Go((100,), 5))
        assert all_rows(system, 104).rows == 104


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_sender_cannot_keep_what_it_has_sent(tmp_path: Path, level: str) -> None:
    with app(tmp_path, level).start() as system:
        system.send("feed", Go((10, 20), how="keep"))
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        system.send("feed", Go((30,)))
        whole(all_rows(system, 30), 30)
        assert system.block("source").get(Field.DEATHS) == 0
        if level == "process":
            (letter,) = read(system.directory / "journals" / "source").dead
            assert letter.reason.startswith("ViewEscaped: handler 'feed' kept rows of ")


def test_a_sender_that_can_still_write_to_the_ring_ends(tmp_path: Path) -> None:
    with app(tmp_path, "memory", max_restarts=1000).start() as system:
        system.send("feed", Go((10,), how="keep for ever"))
        until(lambda: system.status().dead_letters == 1, "the dead letter", 30)
        system.send("feed", Go((30,)))
        whole(all_rows(system, 30), 30)
        assert system.block("source").get(Field.DEATHS) >= 1


# ------------------------------------------------------------------------------------------------ refusals
class Wrong(Handler):
    def on_start(self) -> None:
        told = []
        for ask in (
            lambda: self.reserve(Tick, -1),
            lambda: self.reserve(Tick, 1.0),  # type: ignore[arg-type]
            lambda: self.reserve(HIDDEN["mark"], 1),
            lambda: self.reserve(HIDDEN["other"], 1),
            lambda: self.reserve(Tick, 1 << 24),
        ):
            try:
                ask()
            except (TypeError, ValueError, UnroutedMessage, TooManyRows) as error:
                told.append(str(error))
        with self.reserve(Tick, 0) as rows:
            told.append(str(len(rows)))
        reserved = self.reserve(Tick, 1)
        with reserved:
            pass
        try:
            with reserved:
                pass
        except RuntimeError as error:
            told.append(str(error))
        self.send(Told(tuple(told)))


class Other(FixedMessage):
    it: f8


HIDDEN: dict[str, Any] = {"mark": Mark, "other": Other}  # what is surely sent would have to be routed


class Told(Message):
    texts: tuple[str, ...]


class Hearer(Handler):
    def __init__(self, path: Path) -> None:
        self.path = path

    @handle
    def on_told(self, told: Told) -> None:
        self.path.with_suffix(".part").write_text("\n".join(told.texts))
        self.path.with_suffix(".part").rename(self.path)

    @handle
    def on_tick(self, tick: Tick) -> None: ...


def test_what_cannot_be_reserved_is_told_with_what_can(tmp_path: Path) -> None:
    made = Topology("wrong", directory=tmp_path / "run")
    made.worker("source", wrong=Wrong)
    made.worker("w", hearer=Hearer.spec(tmp_path / "told"))
    made.route("wrong", (Tick, Told), to="hearer")
    with made.start():
        until((tmp_path / "told").exists, "what was told")
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == "reserve(Tick, -1): the number of rows is 0 or more"
    assert told[1] == "reserve(Tick, 1.0): the number of rows is an int"
    assert told[2] == "reserve(Mark, ...): rows are of subclasses of FixedMessage; use send()"
    assert "sent a Other, which the topology routes nowhere" in told[3]
    assert f"there is room for {(1 << 28) // 40}" in told[4]
    assert told[5] == "0"
    assert told[6] == "these rows were reserved before: call reserve() again for others"


def changed_app(directory: Path, field: str, *, pause: bool) -> Topology:
    """The same topology with a class of the same name; `pause`: its receiver never gets to handle anything."""
    source = f"""
import time
from actors import FixedMessage, Handler, Rows, handle
from actors.fixed import f4, f8, u8

class Changing(FixedMessage):
    {field}

class Source(Handler):
    def on_start(self) -> None:
        with self.reserve(Changing, 5) as rows:
            pass

class Stuck(Handler):
    @handle(batch=True)
    def on_rows(self, rows: Rows[Changing]) -> None:
        while {pause}:
            time.sleep(0.01)
"""
    names: dict[str, Any] = {"__name__": "changing_module"}
    exec(compile(source, "changing_module.py", "exec", dont_inherit=True), names)
    made = Topology("changed", directory=directory / "run")
    made.worker("source", source=names["Source"])
    made.worker("w", stuck=names["Stuck"])
    made.supervise("w", shutdown="brutal_kill")
    made.route("source", names["Changing"], to="stuck")
    return made


def test_a_journal_with_pending_rows_of_another_layout_is_refused_with_both(tmp_path: Path) -> None:
    with changed_app(tmp_path, "price: f8", pause=True).start() as system:
        until(lambda: system.block("w").get(Field.BUSY_PEER) != 0, "the handler at work")
        system.stop(drain=False)
    with pytest.raises(StartFailed) as raised:
        changed_app(tmp_path, "price: f4", pause=False).start()
    assert (
        "the layout of changing_module.Changing has changed from {price f8 @0; 8 bytes} to {price f4 @0; 8 bytes}, but"
        " messages are pending: 5 on route source -> changing_module.Changing; start the former topology"
    ) in str(raised.value)
    with changed_app(tmp_path, "price: f8", pause=False).start() as system:
        assert system.stop() is ExitStatus.OK
    with changed_app(tmp_path, "price: f4", pause=False).start() as system:
        assert system.stop() is ExitStatus.OK


def test_a_worker_that_finds_another_class_than_the_topology_was_made_of_is_refused(tmp_path: Path) -> None:
    plan = app(tmp_path).compile()
    check_layouts(plan)
    other = layout_of(Other).text
    routes = [replace(one, layout=other) if one.message is Tick else one for one in plan.routes]
    with pytest.raises(LayoutMismatch) as raised:
        check_layouts(replace(plan, routes=tuple(routes)))
    assert layout_of(Tick).text in str(raised.value)
    assert other in str(raised.value)


def test_a_dead_letter_is_shown_by_its_fields_and_can_be_requeued(tmp_path: Path) -> None:
    class Refuses(Sink, max_attempts=1):
        def on_ticks(self, ticks: Rows[Tick]) -> None:
            if ticks["flag"].any() and not (tmp_path / "now").exists():
                raise ValueError("flagged")
            super().on_ticks(ticks)

    with app(tmp_path, sink=Refuses).start() as system:
        system.send("feed", Go((3,), flagged=1))
        until(lambda: system.status().dead_letters == 1, "the dead letter")
        (letter,) = collect(system.directory, payloads=True).dead_letters
        assert letter.type.endswith("test_fixed.Tick")
        assert letter.codec == "fixed"
        assert letter.payload == {"symbol": "RNGL", "price": 0.5, "number": 1, "flag": 1}
        (tmp_path / "now").touch()
        assert [one.done for one in system.requeue_dead_letters([(letter.worker, letter.peer, letter.seq)])] == [
            "requeued"
        ]
        assert all_rows(system, 3).total == 3


def test_errors_carry_their_values_through_pickle() -> None:
    import pickle

    for error in (
        ViewEscaped(("m.Tick",), ("sink",)),
        TooManyRows("m.Tick", 5, 3, "feed"),
        LayoutMismatch("m.Tick", "{a}", "{b}", "there"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))
