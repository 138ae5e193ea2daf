"""The board: every field in its place, readable by anybody, and never an exception for torn content."""

from __future__ import annotations

import random

import pytest

from bus import Board, BoardCell, Control, Field, LayoutError, NoSuchBlock, Segment, Text, WorkerState, board_size
from bus.layout import (
    BLOCK_CELLS,
    BLOCK_SIZE,
    BOARD_MAGIC,
    DOORBELL_AT,
    LINE,
    NAME_LIMIT,
    SUPERVISOR_CELLS_AT,
    TEXT_AT,
    TEXT_LIMIT,
    BoardIdentity,
    block_at,
)
from tests.bus.implementations import new_segment, python

NAMES = ("ingest", "statistik-ä", "gateway")
SUPERVISORS = {
    Field.CONTROL,
    Field.RESTARTS,
    Field.LAST_DEATH_NS,
    Field.LAST_DEATH_CODE,
    Field.SUPERVISED_STATE,
    Field.GATE,
    Field.PAUSE,
    Field.DEATHS,
}


def new_board(names: tuple[str, ...] = NAMES) -> tuple[Board, bytearray]:
    buffer = bytearray(board_size(names))
    return Board.format(buffer, names), buffer


def test_names_come_back_in_order() -> None:
    board, buffer = new_board()
    assert board.names == Board(buffer).names == NAMES
    assert Board.size(NAMES) == len(buffer)
    assert new_board(())[0].names == ()


def test_every_field_of_every_block_is_a_cell_of_its_own() -> None:
    board, buffer = new_board()
    other = Board(buffer)
    values = {(name, field): hash((name, field)) % 2**60 for name in NAMES for field in Field}
    for (name, field), value in values.items():
        board.block(name).set(field, value)
    for cell in BoardCell:
        board.set(cell, 2**64 - 1 - cell)
    for (name, field), value in values.items():
        assert other.block(name).get(field) == other.block(name).cells[field] == value
    assert [other.get(cell) for cell in BoardCell] == [2**64 - 1 - cell for cell in BoardCell]
    assert other.names == NAMES


def test_cells_of_different_writers_lie_two_cache_lines_apart() -> None:
    for field in Field:
        assert (field * 8 >= SUPERVISOR_CELLS_AT) == (field in SUPERVISORS)
    assert max(Field) < BLOCK_CELLS
    borders = [SUPERVISOR_CELLS_AT, DOORBELL_AT, *TEXT_AT.values(), BLOCK_SIZE]
    assert all(border % LINE == 0 for border in borders)
    assert borders == sorted(borders)
    assert (SUPERVISOR_CELLS_AT, DOORBELL_AT, BLOCK_SIZE) == (384, 512, 6016), "as in the diagram"
    assert [TEXT_AT[text] for text in Text] == [640, 4864]


def test_hot_loops_store_into_the_cells_directly() -> None:
    board, buffer = new_board()
    cells = board.block("gateway").cells
    cells[Field.BUSY_SEQ] = 17
    assert Board(buffer).block("gateway").get(Field.BUSY_SEQ) == 17
    assert len(cells) == BLOCK_CELLS


def test_negative_exit_codes_keep_their_sign() -> None:
    board, buffer = new_board()
    board.block("ingest").set(Field.LAST_DEATH_CODE, -9)
    assert Board(buffer).block("ingest").get(Field.LAST_DEATH_CODE) == -9
    assert board.block("ingest").cells[Field.LAST_DEATH_CODE] == 2**64 - 9


def test_an_unknown_block_is_named_with_those_there_are() -> None:
    board, _ = new_board()
    with pytest.raises(NoSuchBlock, match=r"'inges'.*ingest, statistik") as caught:
        board.block("inges")
    assert (caught.value.name, caught.value.names) == ("inges", NAMES)


@pytest.mark.parametrize("text", list(Text))
def test_texts_are_kept_apart_and_replaced(text: Text) -> None:
    board, buffer = new_board()
    block, other = board.block("ingest"), Board(buffer).block("ingest")
    assert other.text(text) == ""
    for value in ("Ärger\nin line 2", "", "short"):
        block.set_text(text, value)
        assert other.text(text) == value
    assert [other.text(t) for t in Text if t != text] == [""]
    block.set_text(text, "x" * TEXT_LIMIT[text])
    assert other.text(text) == "x" * TEXT_LIMIT[text]
    assert [other.text(t) for t in Text if t != text] == [""]
    assert Board(buffer).block("statistik-ä").text(text) == ""


@pytest.mark.parametrize("text", list(Text))
@pytest.mark.parametrize("letter", ["x", "ä", "€", "𝄞"])
def test_long_texts_keep_their_end_and_whole_characters(text: Text, letter: str) -> None:
    block = new_board()[0].block("ingest")
    block.set_text(text, "start" + letter * 5000 + "end")
    kept = block.text(text)
    assert kept == letter * ((TEXT_LIMIT[text] - 3) // len(letter.encode())) + "end"


def test_torn_and_damaged_texts_read_oddly_but_never_raise() -> None:
    board, buffer = new_board()
    block = board.block("ingest")
    rng = random.Random(3)
    at = block_at(0, len(NAMES)) + TEXT_AT[Text.LAST_WORDS]
    for _ in range(200):
        buffer[at : at + 8] = rng.choice((rng.randbytes(8), rng.randrange(6000).to_bytes(8, "little")))
        buffer[at + 8 : at + 8 + 4096] = rng.randbytes(4096)
        assert len(block.text(Text.LAST_WORDS)) <= 4096
    block.set_text(Text.LAST_WORDS, "lone surrogate \udc80")
    assert block.text(Text.LAST_WORDS) == "lone surrogate ?"


def test_the_doorbell_of_a_block_is_shared() -> None:
    board, buffer = new_board()
    board.block("ingest").doorbell.arm()
    assert Board(buffer).block("gateway").doorbell.ring() is False
    assert Board(buffer).block("ingest").doorbell.ring() is True
    assert board.block("ingest").doorbell.wait(10.0) is True


def test_a_closed_board_holds_nothing() -> None:
    board, buffer = new_board()
    block = board.block("ingest")
    assert board.block("ingest") is block
    board.block("gateway").close()
    board.close()
    board.close()
    with pytest.raises(ValueError):
        block.get(Field.PID)
    with pytest.raises(ValueError):
        block.text(Text.LAST_WORDS)
    buffer.append(0)


def test_what_is_not_a_board_is_refused_with_the_value_at_fault() -> None:
    _, good = new_board()
    cases: list[tuple[int, int, str]] = [
        (BoardIdentity.MAGIC, BOARD_MAGIC + 1, "magic"),
        (BoardIdentity.VERSION, 0, "version"),
        (BoardIdentity.VERSION, 2, "version"),
        (BoardIdentity.COUNT, 2**63, "count"),
        (BoardIdentity.COUNT, 2, "size"),
        (BoardIdentity.SIZE, 0, "size"),
        (32, 0, "length of name 0"),
        (32, 121, "length of name 0"),
        (33, 0xFF, "name 0"),
    ]
    for cell, value, field in cases:
        buffer = bytearray(good)
        buffer[cell * 8 : cell * 8 + 8] = value.to_bytes(8, "little")
        with pytest.raises(LayoutError) as caught:
            Board(buffer)
        assert caught.value.field == field
        buffer.append(0)
    for size in (0, 255, 256, len(good) - 1):
        with pytest.raises(LayoutError):
            Board(good[:size])


@pytest.mark.parametrize("names", [["a", "a"], [""], ["ä" * (NAME_LIMIT // 2 + 1)], [str(n) for n in range(4097)]])
def test_names_that_cannot_be_kept_are_refused_before_anything_is_written(names: list[str]) -> None:
    buffer = bytearray(board_size(names))
    with pytest.raises(LayoutError):
        Board.format(buffer, names)
    assert not any(buffer)
    with pytest.raises(LayoutError):
        Board.format(bytearray(board_size(["a"]) - 1), ["a"])


READ = """
import sys
from bus import Board, Field, Segment, Text
segment = Segment.attach(sys.argv[1])
board = Board(segment.buf)
for name in board.names:
    block = board.block(name)
    print(name, block.get(Field.PID), block.get(Field.LAST_DEATH_CODE), block.text(Text.LAST_WORDS))
board.block("b").set(Field.HANDLED, 5)
board.close()
segment.close()
"""


@pytest.mark.parametrize("implementation", [None, "python"])
def test_another_process_reads_and_writes_it(implementation: str | None) -> None:
    with new_segment(board_size(["a", "b"])) as segment:
        board = Board.format(segment.buf, ["a", "b"])
        board.block("a").set(Field.PID, 12)
        board.block("b").set(Field.LAST_DEATH_CODE, -11)
        board.block("b").set_text(Text.LAST_WORDS, "so long")
        done = python("-c", READ, segment.name, RINGLEADER_RING=implementation)
        assert (done.stderr, done.stdout) == ("", "a 12 0 \nb 0 -11 so long\n")
        assert board.block("b").get(Field.HANDLED) == 5
        board.close()


def test_states_are_numbered_for_ever() -> None:
    assert [(c.name, c.value) for c in Control] == [("RUN", 0), ("DRAIN", 1), ("STOP", 2), ("LEAVE", 3)]
    assert [state.name.lower() for state in WorkerState] == [
        *("new", "starting", "recovering", "running", "draining", "stopping", "stopped", "dead", "gave_up"),
        "waiting",
    ]
    assert list(WorkerState) == list(range(10))


def test_a_board_lives_in_a_segment() -> None:
    with new_segment(board_size(NAMES)) as segment:
        board = Board.format(segment.buf, NAMES)
        board.block("ingest").set(Field.STATE, WorkerState.RUNNING)
        other = Segment.attach(segment.name)
        seen = Board(other.buf)
        assert WorkerState(seen.block("ingest").get(Field.STATE)) is WorkerState.RUNNING
        seen.close()
        other.close()
        board.close()
