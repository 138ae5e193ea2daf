"""Large messages are copied once by who sends them: into a claim, when they are sent."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import PICKLE, RAW, Handler, Message, State, Topology, handle
from actors.claims_in_memory import MemoryClaims
from actors.claims_on_disk import DiskClaims
from actors.codec import RunCodec
from actors.codec_runs import CodecRuns
from actors.errors import BadRecord
from actors.links import Link
from actors.tickets import Large, Ticket, ticket_of
from bus import Cell
from persist.errors import JournalFull
from persist.format import Send

from .waiting import until

KIB, MIB = 1 << 10, 1 << 20
PEERS = ["gateway", "a", "b"]
PREFIX = f"ringleader-laid{os.getpid()}-"


class Blob(Message):
    n: int
    data: bytes


class Tray(Message):
    data: bytearray


class Frame:
    def __init__(self, n: int, array: Any) -> None:
        self.n, self.array = n, array


class Go(Message):
    pass


class Get(Message):
    pass


class Seen(Message):
    items: list[str]


class Done(State):
    items: list[str] = []


@pytest.fixture
def claims() -> Iterator[MemoryClaims]:
    yield MemoryClaims("a", PREFIX, PEERS)
    for name in segments():
        os.unlink(f"/dev/shm/{name}")


@pytest.fixture
def theirs() -> MemoryClaims:
    return MemoryClaims("b", PREFIX, PEERS)


def segments() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(PREFIX)]


def link_to(index: int) -> Link:
    return Link(index, PEERS[index], 1 << 20)


def committed(claims: MemoryClaims, body: Large, *edges: tuple[Link, int]) -> bytes:
    places = [(link.index, seq) for link, seq in edges]
    run = claims.stake(body, places)
    claims.committed((), ())
    for link, seq in edges:
        claims.sent(link, seq, Send(0, 1, 0, places, run))
    claims.forget(())
    return run


def test_what_is_laid_is_what_was_sent_whatever_becomes_of_its_parts(
    claims: MemoryClaims, theirs: MemoryClaims
) -> None:
    first, second = bytearray(b"spam" * 5000), np.arange(5000)
    laid = claims.lay(Large("raw", (memoryview(first), second.data.cast("B"), b"end")))
    expected = bytes(first) + second.tobytes() + b"end"
    first[:], second[:] = bytes(20_000), 7
    ticket = ticket_of(committed(claims, laid, (link_to(2), 1)))
    assert theirs.redeem(ticket) == expected
    assert len(segments()) == 1  # it was not copied once more


def test_what_is_laid_and_not_staked_is_free_at_the_commit_or_without_it(
    claims: MemoryClaims, theirs: MemoryClaims
) -> None:
    numbers = set()
    for over in (lambda: claims.committed((), ()), claims.withdraw):
        for _ in range(3):
            numbers.add(claims.lay(Large("raw", (bytes(MIB),))).claim)
            over()
    assert len(numbers) == len(segments()) == 1
    laid = claims.lay(Large("raw", (bytes(MIB),)))
    with pytest.raises(BadRecord):  # its edges do not count yet, and a ticket for it was never made
        theirs.redeem(Ticket("a", laid.claim, 1, MIB, 0, ""))
    claims.withdraw()


class Ring:
    """Of which only the acknowledgement cell is looked at."""

    def get(self, cell: int) -> int:
        assert cell == Cell.ACK
        return 0


def test_what_is_laid_by_who_dies_is_gone_at_the_next_start(claims: MemoryClaims) -> None:
    """Whatever was sent before from the same memory."""
    link = link_to(2)
    ticket = ticket_of(committed(claims, Large("raw", (bytes(MIB),)), (link, 1)))
    claims.acknowledged(link, 1)
    assert claims.lay(Large("raw", (bytes(MIB),))).claim == ticket.number
    links: list[Any] = [link_to(index) for index in range(3)]
    links[2].producing = Ring()
    again = MemoryClaims("a", PREFIX, PEERS)
    again.recover(links, None, ())
    assert not segments()
    assert again.held == 0


def test_what_goes_by_two_ways_has_two_claims_each_freed_for_itself(claims: MemoryClaims, theirs: MemoryClaims) -> None:
    """To other workers, and to handlers of its own that have not handled it yet."""
    out, own = link_to(2), link_to(1)
    laid = claims.lay(Large("raw", (b"x" * MIB,)))
    one, other = claims.stake(laid, [(2, 1)]), claims.stake(laid, [(1, 1)])
    claims.committed((), ())
    claims.sent(out, 1, Send(0, 1, 0, [(2, 1)], one))
    claims.sent(own, 1, Send(0, 1, 0, [(1, 1)], other))
    claims.forget(())
    assert claims.held == 2 * MIB
    claims.acknowledged(out, 1)
    assert claims.redeem(ticket_of(other)) == b"x" * MIB
    claims.acknowledged(own, 1)
    assert claims.held == 0


def test_no_room_is_told_by_the_commit_not_by_the_send(claims: MemoryClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    data = bytearray(MIB)
    laid = claims.lay(Large("raw", (memoryview(data),)))
    data[:] = b"x" * MIB
    assert laid.whole() == bytes(MIB)  # a copy of its own
    with pytest.raises(JournalFull):
        claims.stake(laid, [(2, 1)])
    claims.withdraw()
    assert not segments()


def test_on_disk_there_is_a_copy_until_the_commit(tmp_path: Path) -> None:
    claims = DiskClaims("a", tmp_path / "a", 1, True)
    data = bytearray(b"spam" * 10_000)
    laid = claims.lay(Large("raw", (b"some", memoryview(data))))
    data[:] = bytes(40_000)
    assert not list(tmp_path.rglob("*.claim"))
    ticket = ticket_of(claims.stake(laid, [(2, 1)]))
    assert bytes(claims.redeem(ticket)) == b"some" + b"spam" * 10_000
    claims.close()


@pytest.mark.parametrize("codec", ["messagepack", "pickle"])
def test_memory_is_free_again_as_soon_as_its_message_is(claims: MemoryClaims, theirs: MemoryClaims, codec: str) -> None:
    """Not when somebody collects garbage: until then each message would take new memory."""
    sender: RunCodec
    sender = RunCodec(Blob) if codec == "messagepack" else CodecRuns(Frame, PICKLE)
    sender.redeem = theirs.redeem
    link, numbers = link_to(2), set()
    gc.collect()
    gc.disable()
    try:
        for n in range(1, 9):
            message = Blob(n, bytes(MIB)) if codec == "messagepack" else Frame(n, np.arange(MIB // 8))
            body = sender.encode_alone(message, KIB, 10 * MIB)
            assert isinstance(body, Large)
            run = committed(claims, claims.lay(body), (link, n))
            del body
            (got,) = sender.decode_run(run)
            assert got.n == n
            del got
            theirs.settle()
            numbers.add(ticket_of(run).number)
            claims.acknowledged(link, n)
    finally:
        gc.enable()
    assert len(numbers) == 1


# Systems


class Sends(Handler):
    """What it sends it changes at once."""

    def __init__(self) -> None:
        self.array, self.tray = np.arange(40_000), bytearray(300 * KIB)

    @handle
    def on_go(self, go: Go) -> None:
        for n in range(20):
            self.array[:] = n
            self.tray[:] = bytes([n]) * len(self.tray)
            self.send(Frame(n, self.array))
            self.send(Tray(self.tray))
            self.send(memoryview(self.tray))
        self.array[:] = 99
        self.tray[:] = b"c" * len(self.tray)


class Takes(Handler):
    state: Done

    @handle
    def on_frame(self, frame: Frame) -> None:
        self._note(set(frame.array.tolist()))

    @handle
    def on_tray(self, tray: Tray) -> None:
        self._note(set(tray.data))

    @handle
    def on_view(self, view: memoryview) -> None:
        self._note(set(view))

    def _note(self, values: set[int]) -> None:
        self.state.items.append(str(sorted(values)))

    @handle
    def on_get(self, get: Get) -> None:
        self.reply(Seen(self.state.items))


@pytest.mark.parametrize("level", ["memory", "process"])
def test_what_a_handler_changes_after_it_has_sent_it_changes_nothing_sent(tmp_path: Path, level: str) -> None:
    app = Topology("laid", directory=tmp_path / "run", durability=level)
    app.worker("left", sends=Sends, here=Takes)
    app.worker("right", there=Takes)
    for name in ("sends", "here", "there"):
        app.external(name, Go if name == "sends" else Get)
    app.codec(Frame, PICKLE)
    app.codec(memoryview, RAW)
    for type_ in (Frame, Tray, memoryview):
        app.route("sends", type_, to=["here", "there"])
    with app.start() as system:
        system.send("sends", Go())
        for name in ("here", "there"):

            def items(name: str = name) -> list[str]:
                return system.ask(name, Get(), reply=Seen, timeout=60).items

            until(lambda: len(items()) == 60, "all of them", 30)
            assert items() == [f"[{n}]" for n in range(20) for _ in range(3)]
