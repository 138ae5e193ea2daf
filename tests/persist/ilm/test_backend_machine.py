"""Every backend against a small reference: any order of commits, refusals, acknowledgements, forgetting, restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from persist.errors import SequenceBroken
from persist.ilm.backend import Change, Run
from tests.persist.ilm.backend_building import KINDS, Box, Model, opener, plain

PEERS = st.sampled_from(["bob", 5, "5", "2/s:bob"])
KEYS = ["ilm/store", "user/a", "user/b"]
RUNS = st.lists(st.tuples(PEERS, st.integers(1, 5), st.binary(max_size=400)), max_size=4)


class BackendMachine(RuleBasedStateMachine):
    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.open = opener(self.kind, self.place)
        self.model = Model()
        self.positions: dict[object, list[int]] = {}  # of the runs in each box of the model
        self.backend = self.open()
        assert self.backend.recover() == {}

    def teardown(self) -> None:
        self.backend.close()
        shutil.rmtree(self.place)

    def change(self, runs, consumed, values) -> Change:
        """The next runs, as they would be committed one after the other."""
        ends = {peer: box.assigned for peer, box in self.model.boxes.items()}
        sends = []
        for peer, count, body in runs:
            sends.append((peer, Run(ends.get(peer, 0) + 1, count, body)))
            ends[peer] = ends.get(peer, 0) + count
        marks = [(peer, self.model.boxes.get(peer, Box()).watermark + more) for peer, more in consumed.items()]
        return Change(sends, marks, list(values.items()))

    @rule(
        runs=RUNS,
        consumed=st.dictionaries(PEERS, st.integers(1, 9), max_size=2),
        values=st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=50), max_size=2),
    )
    def commit(self, runs, consumed, values) -> None:
        change = self.change(runs, consumed, values)
        position = self.backend.commit(change)
        if change.sends:
            assert position > max((last for positions in self.positions.values() for last in positions), default=-1)
        self.model.commit(change)
        for peer, _ in change.sends:
            self.positions.setdefault(peer, []).append(position)

    @rule(runs=RUNS.filter(bool), off=st.sampled_from([-3, -1, 1, 2]))
    def commit_out_of_order(self, runs, off: int) -> None:
        change = self.change(runs, {}, {"user/a": b"never"})
        peer, last = change.sends[-1]
        wrong = Run(last.first + off, last.count, last.body)
        with pytest.raises(SequenceBroken):
            self.backend.commit(Change([*change.sends[:-1], (peer, wrong)], [(peer, 99)], change.values))

    @rule(peer=PEERS, more=st.integers(-2, 9))
    def acknowledge(self, peer, more: int) -> None:
        box = self.model.boxes.get(peer, Box())
        through = box.acked + more
        self.backend.acknowledged(peer, through)
        box.acked = max(box.acked, min(through, box.assigned))

    @rule(peer=PEERS)
    def acknowledge_all(self, peer) -> None:
        self.acknowledge(peer, 1000)

    @rule(peer=PEERS)
    def forget(self, peer) -> None:
        self.backend.forget(peer)
        self.model.boxes.pop(peer, None)
        self.positions.pop(peer, None)

    @rule()
    def restart(self) -> None:
        self.backend.close()
        self.backend = self.open()
        found = self.backend.recover()
        self.model.check(self.backend, found.items(), KEYS)

    @precondition(lambda self: any(box.runs for box in self.model.boxes.values()))
    @rule(data=st.data())
    def load_from_a_position(self, data) -> None:
        peer = data.draw(st.sampled_from(sorted((p for p, box in self.model.boxes.items() if box.runs), key=repr)))
        box, positions = self.model.boxes[peer], self.positions[peer]
        begin = data.draw(st.integers(0, len(box.runs) - 1))
        after = data.draw(st.integers(box.acked, box.assigned))
        position = positions[begin]
        expected = [run for run, at in zip(box.runs, positions, strict=True) if at >= position]
        loaded = plain(self.backend.runs(peer, after, position))
        assert loaded == [run for run in expected if run[0] + run[1] - 1 > after]

    @invariant()
    def holds_what_it_must(self) -> None:
        self.model.check(self.backend, None, KEYS)


EXAMPLES = {"memory": 100, "journal-process": 60, "journal-power": 10, "sqlite-process": 50, "sqlite-power": 10}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_a_backend_holds_what_it_must(kind: str) -> None:
    machine: type[BackendMachine] = type(kind, (BackendMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[kind],
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
