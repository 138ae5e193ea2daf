"""What a dead incarnation leaves behind in its status block, and what not."""

from __future__ import annotations

import pytest

from actors.child import Child
from actors.restart import ChildSpec, Death
from bus import Board, Field, WorkerState


@pytest.mark.parametrize("field", [Field.PID, Field.BUSY_PEER, Field.CONTROL_SEEN, Field.PAUSED, Field.RETRY_PEER])
def test_nothing_is_shown_of_a_dead_worker_that_only_a_living_one_can_be_about(field: int) -> None:
    board = Board.format(bytearray(Board.size(["work"])), ["work"])
    block = board.block("work")
    block.set(field, 3)
    block.set(Field.HANDLED, 17)
    Child(ChildSpec("work"), block).bury(Death("work", None, 9, False, "killed by SIGKILL", True, False))
    assert block.get(field) == 0
    assert (block.get(Field.STATE), block.get(Field.HANDLED)) == (WorkerState.DEAD, 17)
    board.close()
