"""The short ways of a message that comes alone do exactly what the general way does.

What is general is what remains when nothing may be handled alone or pass straight, and the worker never polls.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from actors.dispatch import Dispatcher
from actors.endpoint import Endpoint
from actors.plan import GATEWAY
from bus import Pause

from ..bus.implementations import RINGS
from .twins import (
    KINDS,
    PEERS,
    Arm,
    Ask,
    Clock,
    Come,
    Later,
    Over,
    Paused,
    Record,
    Report,
    Step,
    Take,
    Twin,
    differences,
)

Play = Callable[[str, str, list[Step], bool, bool], Report]

# The commonest things first, to which whatever fails is shrunk.
ACTS = st.one_of(
    st.sampled_from(["", "p", "r", "P", "h", "b", "o", "H", "x", "pp", "pr", "px", "hp"]),
    st.text("pPrbohHxsetuay", max_size=4),
)
RECORDS = st.builds(
    Record,
    st.sampled_from(PEERS),
    st.sampled_from(list(KINDS)),
    st.one_of(st.tuples(ACTS), st.lists(ACTS, min_size=1, max_size=3).map(tuple)),
    st.sampled_from([0] * 20 + [-1, -2, 1, 3]),
    st.sampled_from([""] * 30 + ["body", "count", "route", "short"]),
    st.booleans(),
)
STEPS = st.one_of(
    st.builds(lambda record: Come((record,)), RECORDS),
    st.builds(lambda record: Come((record,)), RECORDS),
    st.builds(Take, st.sampled_from(["p", "r", GATEWAY]), st.integers(1, 9), st.booleans()),
    st.builds(Come, st.lists(RECORDS, min_size=1, max_size=4).map(tuple)),
    st.builds(Arm, st.sampled_from(["p", "q", "r", GATEWAY]), st.booleans()),
    st.builds(Later, st.sampled_from([1000, 600_000, 30_000_000])),
    st.builds(Ask, st.sampled_from(["p", "r"])),
    st.builds(Paused, st.sampled_from(list(Pause))),
    st.builds(Over, st.booleans()),
)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    base, number = tmp_path_factory.mktemp("twins"), iter(range(10**9))

    def played(level: str, ring: str, steps: list[Step], short: bool, polls: bool) -> Report:
        folder: Path = base / str(next(number))
        folder.mkdir()
        try:
            with pytest.MonkeyPatch.context() as patch:
                if not short:
                    patch.setattr(Dispatcher, "_handle_alone", lambda self, arrival: False)
                    patch.setattr(Endpoint, "_passes", lambda self, consumed, runs: False)
                return Twin(folder, level, patch, Clock(BEGIN), polls=polls, ring=RINGS[ring]).play(steps)
        finally:
            shutil.rmtree(folder)

    return played


BEGIN = Clock().ns
EXAMPLES = int(os.environ.get("EXAMPLES", "40"))
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]  # to explain takes very long
IMPLEMENTATIONS = [name for name in ("python", "c") if name in RINGS]


@pytest.mark.parametrize("ring", IMPLEMENTATIONS)
@pytest.mark.parametrize("level", ["memory", "process"])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(steps=st.lists(STEPS, min_size=1, max_size=12), polls=st.booleans())
def test_whatever_comes(play: Play, level: str, ring: str, steps: list[Step], polls: bool) -> None:
    general = play(level, ring, steps, False, False)
    short = play(level, ring, steps, True, polls)
    assert list(differences(general, short)) == []
