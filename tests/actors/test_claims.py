"""Messages too large for a ring: where they lie, who holds them, and that nothing of them is lost or left behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from actors import JSON, PICKLE, RAW, Handler, Message, MessageTooLarge, SendTimeout, State, System, Topology, handle
from actors.claims import Claims
from actors.claims_in_memory import MemoryClaims
from actors.claims_on_disk import DiskClaims
from actors.codec_runs import CodecRuns
from actors.dead_letters import LetterPlace, collect
from actors.errors import BadRecord
from actors.identity import stale_prefix
from actors.letters_stopped import change_stopped
from actors.links import Link
from actors.rundir import RunDirectory
from actors.tickets import Large, Ticket, ticket_in, ticket_of
from actors.wiring import open_claims
from bus import Block, Cell, Field, WorkerState
from persist.errors import JournalFull
from persist.format import DeadLetter, Send

from .waiting import until

KIB, MIB = 1 << 10, 1 << 20
LEVELS = ["memory", "process", "power"]
PEERS = ["gateway", "a", "b"]


class Blob(Message):
    n: int
    data: bytes


class Text(Message):
    n: int
    text: str


class View(Message):
    data: memoryview


class Frame:
    def __init__(self, n: int, array: Any) -> None:
        self.n, self.array = n, array


class Get(Message):
    pass


class Seen(Message):
    items: list[str]


class Done(State):
    items: list[str] = []


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def content(n: int, size: int = 300 * KIB) -> bytes:
    return random.Random(n).randbytes(size)


def there(directory: Path) -> list[str]:
    """Claims of a system, wherever they may be, running or not."""
    with RunDirectory.open(directory, create=False) as opened:
        identity = opened.read_identity()
    assert identity is not None
    found = [str(path) for path in (directory / "journals").rglob("*.claim")]
    prefix = stale_prefix(identity)
    return found + [name for name in os.listdir("/dev/shm") if name.startswith((f"{prefix}c", f"{prefix}l"))]


# Where they lie


@pytest.fixture(params=["disk", "disk, durable", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Claims]]:
    prefix = f"ringleader-claims{os.getpid()}-"
    opened: list[Claims] = []

    def make(owner: str = "a", epoch: int = 1) -> Claims:
        made: Claims
        if request.param == "memory":
            made = MemoryClaims(owner, prefix, PEERS)
        else:
            made = DiskClaims(owner, tmp_path / owner, epoch, request.param == "disk, durable")
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.close()
    for name in os.listdir("/dev/shm"):
        if name.startswith(prefix):
            os.unlink(f"/dev/shm/{name}")


def files(tmp_path: Path) -> int:
    mine = [name for name in os.listdir("/dev/shm") if name.startswith(f"ringleader-claims{os.getpid()}-")]
    return len(mine) + len(list(tmp_path.rglob("*.claim")))


def link_to(index: int) -> Link:
    return Link(index, PEERS[index], 1 << 20)


def sent(claims: Claims, data: bytes, *edges: tuple[Link, int]) -> Ticket:
    """As a commit does it."""
    places = [(link.index, seq) for link, seq in edges]
    body = claims.stake(Large("raw", (data,)), places)
    send = Send(0, 1, 0, places, body)
    claims.committed((), ())
    for link, seq in edges:
        claims.sent(link, seq, send)
    return ticket_of(body)


def test_what_was_staked_is_redeemed_until_the_last_receiver_has_consumed_it(
    place: Callable[..., Claims], tmp_path: Path
) -> None:
    mine, theirs = place("a"), place("b")
    one, other = link_to(1), link_to(2)
    data = content(1)
    ticket = sent(mine, data, (one, 4), (other, 9))
    assert mine.held == len(data) == ticket.size
    mine.acknowledged(one, 4)
    mine.acknowledged(other, 8)
    assert theirs.redeem(ticket) == data
    assert theirs.redeem(ticket).readonly
    mine.acknowledged(other, 9)
    assert mine.held == 0
    if isinstance(mine, DiskClaims):
        assert files(tmp_path) == 0


def test_a_view_outlives_its_claim(place: Callable[..., Claims]) -> None:
    mine, theirs = place("a"), place("b")
    link = link_to(2)
    views = []
    for n in range(1, 20):
        views.append(theirs.redeem(sent(mine, content(n), (link, n)))[10:])
        theirs.settle()
        mine.acknowledged(link, n)
    assert [digest(view) for view in views] == [digest(content(n)[10:]) for n in range(1, 20)]


def test_memory_that_nobody_looks_at_is_used_again_and_no_other() -> None:
    prefix = f"ringleader-claims{os.getpid()}-"
    mine, theirs, link = MemoryClaims("a", prefix, PEERS), MemoryClaims("b", prefix, PEERS), link_to(2)
    try:
        numbers = set()
        for n in range(1, 9):
            ticket = sent(mine, content(n), (link, n))
            assert digest(theirs.redeem(ticket)) == digest(content(n))
            theirs.settle()
            mine.acknowledged(link, n)
            numbers.add(ticket.number)
        assert len(numbers) == 1
        kept = theirs.redeem(sent(mine, content(9), (link, 9)))
        theirs.settle()
        mine.acknowledged(link, 9)
        again = sent(mine, content(10), (link, 10))
        assert again.number not in numbers
        assert kept == content(9)
        with pytest.raises(BadRecord, match="cannot be read"):
            theirs.redeem(again._replace(generation=7))
    finally:
        for name in os.listdir("/dev/shm"):
            if name.startswith(prefix):
                os.unlink(f"/dev/shm/{name}")


class Ring:
    """Of which only the acknowledgement cell is looked at."""

    def __init__(self, acked: int) -> None:
        self.acked = acked

    def get(self, cell: int) -> int:
        assert cell == Cell.ACK
        return self.acked


def test_without_a_journal_the_next_incarnation_holds_what_rings_may_still_have() -> None:
    prefix = f"ringleader-claims{os.getpid()}-"
    before, theirs = MemoryClaims("a", prefix, PEERS), MemoryClaims("b", prefix, PEERS)
    links = [link_to(index) for index in range(3)]
    try:
        tickets = [sent(before, content(n), (links[2], n), (links[0], n)) for n in range(1, 5)]
        unpublished = sent(before, content(8), (links[2], 5), (links[0], 5))
        own = sent(before, content(9), (links[1], 1))  # carried over in its process only
        dead = before.keep(tickets[0].element())
        again: list[Any] = [link_to(index) for index in range(3)]
        again[0].producing, again[2].producing = Ring(4), Ring(2)
        for link in again:
            link.outbound.restore(assigned=4, acked=4, resume=4, from_position=None)
        after = MemoryClaims("a", prefix, PEERS)
        after.recover(again, None, ())
        assert after.held == tickets[2].size + tickets[3].size
        assert [digest(theirs.redeem(one)) for one in tickets[2:]] == [digest(content(n)) for n in (3, 4)]
        for gone in (tickets[0], tickets[1], unpublished, own, ticket_in(dead)):
            assert gone is not None
            with pytest.raises(BadRecord):
                MemoryClaims("b", prefix, PEERS).redeem(gone)
        after.acknowledged(again[2], 3)
        after.acknowledged(again[2], 4)
        assert after.held == 0
        assert sent(after, content(5), (again[2], 5)).number in {one.number for one in tickets[2:]}
    finally:
        for name in os.listdir("/dev/shm"):
            if name.startswith(prefix):
                os.unlink(f"/dev/shm/{name}")


def test_what_was_not_committed_is_gone(place: Callable[..., Claims], tmp_path: Path) -> None:
    mine = place("a")
    ticket = ticket_of(mine.stake(Large("", (content(1),)), [(2, 1)]))
    mine.withdraw()
    assert mine.held == 0
    if isinstance(mine, DiskClaims):
        assert files(tmp_path) == 0
        with pytest.raises(BadRecord):
            mine.redeem(ticket)


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_claim_that_is_not_what_its_ticket_says_is_a_bad_record(tmp_path: Path, damage: str) -> None:
    claims = DiskClaims("a", tmp_path / "a", 1, True)
    ticket = sent(claims, content(1), (link_to(2), 1))
    (path,) = tmp_path.rglob("*.claim")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content(1)[1:] if damage == "short" else content(2))
    with pytest.raises(BadRecord, match="claim 100000001 of a cannot be read"):
        claims.redeem(ticket)
    claims.close()


def test_an_owner_that_is_no_name_opens_nothing(place: Callable[..., Claims]) -> None:
    for owner in ("../a", "", "nobody"):
        with pytest.raises(BadRecord):
            place("b").redeem(Ticket(owner, 1, 1, 10, 0, ""))


def test_no_room_is_a_refusal_that_leaves_nothing(
    place: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    claims = place("a")
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(JournalFull):
        claims.stake(Large("", (content(1),)), [(2, 1)])
    assert files(tmp_path) == 0
    monkeypatch.undo()
    assert claims.redeem(sent(claims, content(1), (link_to(2), 1))) == content(1)


def letter(body: bytes) -> DeadLetter:
    return DeadLetter(0, 1, 0, "h", "t", "r", "", 1, 0, body)


def test_a_dead_letter_holds_what_its_sender_lets_go(place: Callable[..., Claims], tmp_path: Path) -> None:
    sender, receiver = place("a"), place("b")
    link, own = link_to(2), link_to(2)
    ticket = sent(sender, content(1), (link, 1))
    dead = letter(receiver.keep(ticket.element()))
    receiver.committed([dead], ())
    sender.acknowledged(link, 1)
    mine = ticket_in(dead.body)
    assert mine is not None
    assert (mine.owner, mine.size) == ("b", ticket.size)
    assert digest(receiver.redeem(mine)) == digest(content(1))
    sent(sender, content(2), (link, 2))  # which must not take its place
    # It is requeued: no letter any more, but a message that the worker sends itself.
    receiver.committed((), [dead])
    receiver.hold(own, 5, mine)
    receiver.forget([dead])
    assert digest(receiver.redeem(mine)) == digest(content(1))
    receiver.acknowledged(own, 5)
    sender.acknowledged(link, 2)
    with pytest.raises(BadRecord):
        place("b", 7).redeem(mine)


def test_what_can_be_pickled_beside_the_pickle_is_not_copied() -> None:
    runs = CodecRuns(Frame, PICKLE)
    array = np.arange(100_000)
    large = runs.encode_alone(Frame(1, [array, array * 2, b"small"]), 1000, 10 * MIB)
    assert isinstance(large, Large)
    found = runs.decode_one(large)
    assert (found.n, found.array[2]) == (1, b"small")
    assert (found.array[0] == array).all()
    assert (found.array[1] == array * 2).all()
    assert not found.array[0].flags.writeable
    assert found.array[0].base is not None
    small = runs.encode_alone(Frame(2, np.arange(10)), 1000, 10 * MIB)
    assert isinstance(small, bytes)
    assert (runs.decode_one(small).array == np.arange(10)).all()
    strided = runs.decode_one(runs.encode_alone(Frame(3, np.arange(10_000).reshape(100, 100)[:, ::2]), 1, MIB))
    assert strided.array.shape == (100, 50)


# Systems


class Source(Handler):
    """Sends so many, once the file `gate` is there."""

    state: Done

    def __init__(self, count: int, gate: str = "/") -> None:
        self.count, self.gate = count, gate

    def on_loop(self) -> float | None:
        if not os.path.exists(self.gate):
            return 0.01
        n = len(self.state.items)
        if n == self.count:
            return float("inf")
        self.state.items.append("")
        self.send(Blob(n, content(n, 200 * KIB + 20 * KIB * (n % 10))))
        return None


class Sink(Handler):
    state: Done

    @handle
    def on_blob(self, blob: Blob) -> None:
        self.state.items.append(f"{blob.n} {digest(blob.data)}")

    @handle
    def on_text(self, text: Text) -> None:
        self.state.items.append(f"{text.n} {digest(text.text.encode())}")

    @handle
    def on_bytes(self, data: bytes) -> None:
        self.state.items.append(digest(data))

    @handle
    def on_frame(self, frame: Frame) -> None:
        self.state.items.append(f"{frame.n} {digest(frame.array.tobytes())}")

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.items))


class Pass(Handler):
    @handle
    def on_any(self, message: Blob | Text | bytes | Frame) -> None:
        self.send(message)


class Keep(Handler):
    """Keeps views of what came."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    @handle
    def on_view(self, view: View) -> None:
        self.views.append(view.data[5:])

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen([digest(view) for view in self.views]))


class Picky(Sink, max_attempts=1):
    """Takes what it cannot stand only when it is asked to."""

    @handle
    def on_blob(self, blob: Blob) -> None:
        if blob.n == 3 and self.state.items[-1:] != ["open"]:
            raise ValueError("not this one")
        super().on_blob(blob)

    @handle
    def on_text(self, text: Text) -> None:
        self.state.items.append(text.text)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


def system_of(directory: Path, sink: Any = Sink, **options: Any) -> Topology:
    app = Topology("claims", directory=directory, **({"max_restarts": 1000, "backoff_first": 0.001} | options))
    app.worker("pass", passing=Pass, beside=Sink)
    app.worker("work", sink=sink)
    for name in ("passing", "beside", "sink"):
        app.external(name)
    for type_ in (Blob, Text, bytes, Frame):
        app.route("passing", type_, to=["sink", "beside"])
    app.codec(bytes, RAW)
    app.codec(Frame, PICKLE)
    return app


def gated(directory: Path, count: int, **options: Any) -> Topology:
    """A source that sends so many, once there is a gate, and who takes them."""
    app = Topology("claims", directory=directory, **options)
    app.worker("from", source=Source.spec(count, str(directory / "gate")))
    app.worker("work", sink=Sink)
    app.route("source", Blob, to="sink")
    app.external("sink", Get, Text, bytes, Frame)
    app.codec(bytes, RAW)
    app.codec(Frame, PICKLE)
    return app


def seen(system: System, handler: str = "sink") -> list[str]:
    return system.ask(handler, Get(), reply=Seen, timeout=60).items


@pytest.mark.parametrize("level", LEVELS)
def test_large_messages_of_all_forms_arrive_in_order_and_nothing_is_left(directory: Path, level: str) -> None:
    text, array = "spam" * 100_000, np.arange(90_000)
    expected = []
    with system_of(directory, durability=level).start() as system:
        for n in range(6):
            system.send("passing", Blob(n, content(n)))
            system.send("passing", Blob(n, b"small"))
            system.send("passing", Text(n, text))
            system.send("passing", content(n))
            system.send("passing", Frame(n, array))
            of_array = f"{n} {digest(array.tobytes())}"
            expected += [f"{n} {digest(content(n))}", f"{n} {digest(b'small')}", f"{n} {digest(text.encode())}"]
            expected += [digest(content(n)), of_array]
        for handler in ("sink", "beside"):
            until(lambda name=handler: len(seen(system, name)) == len(expected), "all of them", 60)  # type: ignore[misc]
            assert seen(system, handler) == expected
        if level != "memory":  # there, what was used is kept for the next ones
            until(lambda: not there(directory), "claims to be freed")
    assert not there(directory)


def test_views_that_a_handler_keeps_stay_what_they_were(directory: Path) -> None:
    app = Topology("claims", directory=directory, durability="memory", max_message_bytes=10 * KIB)
    app.worker("work", keep=Keep)
    app.external("keep")
    app.codec(View, RAW)
    with app.start() as system:
        for n in range(50):
            system.send("keep", View(memoryview(content(n, 20 * KIB))))
        until(lambda: len(seen(system, "keep")) == 50, "all of them")
        assert seen(system, "keep") == [digest(content(n, 20 * KIB)[5:]) for n in range(50)]


def test_what_is_over_the_limit_of_claims_is_too_large(directory: Path) -> None:
    with system_of(directory, max_claim_bytes=MIB).start() as system:
        with pytest.raises(MessageTooLarge) as caught:
            system.send("sink", Blob(1, bytes(MIB)))
        assert caught.value.limit == MIB
        with pytest.raises(MessageTooLarge):
            system.send("sink", bytes(MIB + 1))
        system.send("sink", bytes(MIB))
        assert seen(system) == [digest(bytes(MIB))]


def test_without_claims_the_limit_is_that_of_the_ring(directory: Path) -> None:
    with system_of(directory, max_claim_bytes=0).start() as system:
        with pytest.raises(MessageTooLarge) as caught:
            system.send("sink", Blob(1, bytes(300 * KIB)))
        assert caught.value.limit == 256 * KIB


def test_where_a_worker_runs_as_another_user_nothing_goes_by_claim_check(tmp_path: Path) -> None:
    app = Topology("claims")
    app.worker("work", keep=Keep)
    app.external("keep")
    assert app.compile().largest_claim == 1 << 30
    app.process("work", user=os.getuid())
    plan = app.compile()
    assert plan.largest_claim == 0
    assert type(open_claims(plan, "work", "0123abcd", tmp_path / "journal", 1)) is Claims


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_receiver_that_takes_nothing_bounds_what_lies_in_claims(directory: Path, level: str) -> None:
    with gated(directory, 60, durability=level, claims_limit_bytes=MIB).start() as system:
        system.pause("work")
        (directory / "gate").touch()
        until(lambda: len(there(directory)) >= 4, "claims", 30)
        sender = system.block("from")
        until(lambda: sender.get(Field.OVER_LIMIT) == 1, "that it is over its limit", 30)
        beats = sender.get(Field.HEARTBEAT_NS)
        until(lambda: sender.get(Field.HEARTBEAT_NS) > beats + 500_000_000, "time to send all of it", 30)
        assert len(there(directory)) <= 24  # the limit, a transaction of HEAVY_BYTES, and a message
        assert sender.get(Field.OUTBOX_BYTES) > MIB
        with pytest.raises(SendTimeout) as caught:
            _send_all(system, [content(n) for n in range(60, 80)])
        assert MIB < caught.value.backlog < 2 * MIB
        system.resume("work")
        until(lambda: len(seen(system)) >= 60, "all of them", 60)
    assert not there(directory)


def _send_all(system: System, messages: list[bytes]) -> None:
    for one in messages:
        system.send("sink", one, timeout=0.2)


@pytest.mark.parametrize("level", ["memory", "process"])
def test_a_dead_letter_keeps_its_message_until_it_is_requeued_or_dropped(directory: Path, level: str) -> None:
    with system_of(directory, Picky, durability=level).start() as system:
        for n in range(5):
            system.send("sink", Blob(n, content(n)))
        until(lambda: len(seen(system)) == 4, "the others", 30)
        until(lambda: len(there(directory)) >= 1, "what the letter keeps")
        place = ("work", "gateway", 4)
        if level == "process":
            (shown,) = collect(directory, payloads=True).dead_letters
            assert shown.size_bytes > 300 * KIB
            until(lambda: len(there(directory)) == 1, "what the senders held to go")
            assert shown.payload_hex or shown.payload
        system.send("sink", Text(0, "open"))
        (change,) = system.requeue_dead_letters([place])
        assert change.done == "requeued"
        until(lambda: seen(system)[-1] == f"3 {digest(content(3))}", "the letter")
        system.send("sink", Blob(3, content(3)))
        system.send("sink", Text(0, "behind"))
        until(lambda: seen(system)[-1] == "behind", "what is behind the next one")
        # Only the worker knows at `memory` which letters there are; questions have numbers, too.
        changes = system.drop_dead_letters([("work", "gateway", seq) for seq in range(5, 300)])
        assert [change.done for change in changes].count("dropped") == 1
        if level == "process":
            until(lambda: not there(directory), "the letter's message to go")
    assert not there(directory)


@pytest.mark.parametrize("level", LEVELS)
def test_a_sender_that_died_lets_go_what_is_consumed_and_rests(directory: Path, level: str) -> None:
    """It waited for more to be acknowledged than there was, and looked again and again."""
    with gated(directory, 10, durability=level, backoff_first=0.001).start() as system:
        system.pause("work")
        (directory / "gate").touch()
        sender = system.block("from")

        def published() -> int:
            return next(one.published for one in system.status().edges if (one.source, one.target) == ("from", "work"))

        until(lambda: published() == 10, "all of them in the ring")
        (directory / "gate").unlink()  # at `memory` its count begins anew
        os.kill(sender.get(Field.PID), signal.SIGKILL)
        until(
            lambda: sender.get(Field.RESTARTS) == 1 and sender.get(Field.SUPERVISED_STATE) == WorkerState.RUNNING,
            "the next one",
        )
        assert len(there(directory)) >= 4
        system.resume("work")
        until(lambda: len(seen(system)) == 10, "all of them")
        until(lambda: sender.get(Field.OUTBOX_BYTES) == 0, "what they held to be free")  # claims count until then
        until(lambda: _rests(sender), "the sender to rest")
    assert not there(directory)


def _rests(worker: Block) -> bool:
    """Whether in half a second of its life it needs less than a tenth of that."""
    process, beats = psutil.Process(worker.get(Field.PID)), worker.get(Field.HEARTBEAT_NS)
    before = process.cpu_times()
    until(lambda: worker.get(Field.HEARTBEAT_NS) > beats + 500_000_000, "half a second")
    after = process.cpu_times()
    return (after.user - before.user) + (after.system - before.system) < 0.05


def test_a_letter_is_requeued_with_its_message_while_nothing_runs(directory: Path) -> None:
    with system_of(directory, Picky).start() as system:
        system.send("sink", Blob(3, content(3)))
        until(lambda: len(collect(directory).dead_letters) == 1, "the letter")
    assert len(there(directory)) == 1
    (change,) = change_stopped(directory, "requeue", [LetterPlace("work", "gateway", 1)])
    assert change.done == "requeued"
    with system_of(directory, Sink).start() as system:
        until(lambda: seen(system) == [f"3 {digest(content(3))}"], "the letter")
    assert not there(directory)


def test_a_killed_system_resumes_with_what_was_pending_and_forgets_the_rest(directory: Path) -> None:
    system = system_of(directory).start()
    system.pause("work")
    for n in range(4):
        system.send("sink", Blob(n, content(n)))
    system.stop(drain=False)
    assert len(there(directory)) == 4
    stray = directory / "journals" / "gateway" / f"{77:016x}.claim"  # of a transaction that never was
    stray.write_bytes(b"spam")
    with system_of(directory).start() as system:
        until(lambda: len(seen(system)) == 4, "all of them")
        assert seen(system) == [f"{n} {digest(content(n))}" for n in range(4)]
        assert not stray.exists()
    assert not there(directory)


@pytest.mark.parametrize("level", ["memory", "process"])
def test_kills_lose_and_double_no_large_message_and_leave_nothing(directory: Path, level: str) -> None:
    """At `memory` a kill may have messages handled again, and take along what a source had sent; then only the sink is
    killed, and what it says is looked at as a set."""
    count, chance = 80, random.Random(7)
    app = Topology(
        "kills", directory=directory, durability=level, max_restarts=10**6, backoff_first=0.001, backoff_max=0.01,
        max_attempts=1000,
    )  # fmt: skip
    app.worker("from", source=Source.spec(count))
    app.worker("pass", passing=Pass)
    app.worker("work", sink=Noted.spec(str(directory) + ".log"))
    app.route("source", Blob, to="passing")
    app.route("passing", Blob, to="sink")
    for type_ in (Text, bytes, Frame):
        app.route("passing", type_, to=[])
    app.external("sink", Get, Text, bytes, Frame)
    app.external("passing", Text, bytes, Frame)
    app.codec(bytes, RAW)
    app.codec(Frame, PICKLE)
    expected = [f"{n} {digest(content(n, 200 * KIB + 20 * KIB * (n % 10)))}" for n in range(count)]
    with app.start() as system:
        kills, reached = 0, 0
        while reached < count:
            reached = min(count, reached + chance.randint(1, 12))
            until(lambda least=reached: len(set(_noted(directory))) >= least, f"{reached} of them", 60)  # type: ignore[misc]
            if reached == count:
                break
            block = system.block(chance.choice(["from", "pass", "work"] if level == "process" else ["work"]))
            pids = [0]
            until(lambda pids=pids, block=block: pids.append(block.get(Field.PID)) or pids[-1], "it to be up again")  # type: ignore[misc]
            with contextlib.suppress(ProcessLookupError):  # that is told before it is waited for
                os.kill(pids[-1], signal.SIGKILL)
                kills += 1
        assert set(_noted(directory)) == set(expected)
        if level == "process":
            until(lambda: len(seen(system)) == count, "the last one", 30)
            assert seen(system) == expected
            # A drain does not wait for who is down and has nothing pending, and what he held goes at his next start.
            until(lambda: not there(directory), "whoever was killed last to be up again and to free what it held")
        assert kills > 3
    assert not there(directory)


class Noted(Sink):
    """Notes outside of the system, too."""

    def __init__(self, log: str) -> None:
        self.log = log

    @handle
    def on_blob(self, blob: Blob) -> None:
        super().on_blob(blob)
        with open(self.log, "a") as file:
            file.write(self.state.items[-1] + "\n")


def _noted(directory: Path) -> list[str]:
    path = Path(f"{directory}.log")
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("level", "size"),
    [
        ("memory", 48 * MIB),
        ("process", 48 * MIB),
        pytest.param("memory", 1 << 30, marks=pytest.mark.long),
        pytest.param("process", 1 << 30, marks=pytest.mark.long),
    ],
)
def test_up_to_a_gibibyte_goes_by_rings_of_a_mebibyte(directory: Path, level: str, size: int) -> None:
    data = bytes(size - 8) + b"the end."
    with system_of(directory, durability=level).start() as system:
        system.send("sink", data, timeout=60)
        assert seen(system) == [digest(data)]
    assert not there(directory)


def test_json_may_be_large(directory: Path) -> None:
    app = system_of(directory)
    app.codec(Text, JSON)
    with app.start() as system:
        system.send("sink", Text(1, "x" * MIB))
        assert seen(system) == [f"1 {digest(b'x' * MIB)}"]
