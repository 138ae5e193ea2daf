"""The short ways of a message that comes alone do exactly what the general way does.

What is general is what remains when nothing may be handled alone or pass straight, and the worker never polls.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
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
    st.sampled_from(["P", "P", "pP", "c"]),
    st.text("pPcrbohHxsetuay", max_size=4),
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
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
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


def alone(*acts: str, peer: str = "p", kind: str = "do") -> list[Step]:
    """One by one."""
    return [Come((Record(peer, kind, (one,)),)) for one in acts]


TAKEN: list[Step] = [Take("p", 1), Take("r", 9)]
SCRIPTS: dict[str, list[Step]] = {
    "many": alone(*"pppp") + TAKEN + alone("", "r", "pr", peer="q") + TAKEN + alone("p", kind="count"),
    "a full ring": alone(*"pPPPpr", "") + TAKEN + alone("p") + TAKEN + TAKEN + TAKEN + alone("p", "P"),
    "a full ring, from outside": alone(*"PPPprp", "", peer="q") + TAKEN + alone("p", peer="q") + TAKEN * 3 + alone("p"),
    "a full ring, and somebody waits": [*alone(*"PPP"), Arm("p", True), *alone("p", "")] + TAKEN * 3,
    "somebody waits for room": [Arm("p", True), *alone("p"), Arm("q", True), *alone("r", peer="q"), Arm("r", False)],
    "claims": alone("c", "p", "c", "") + TAKEN * 2 + alone("p", "P", "c", peer="q") + TAKEN * 4,
    "answers": [Come((Record(GATEWAY, "do", (act,), ask=True),)) for act in ("a", "pa", "", "x", "y", "u", "aP")],
    "failures": alone("p", "x", "px", "p", "u", "pu", "y", "p", "pu") + TAKEN,
    "of a handler with State": alone("p", "x", "pr", "", "y", "p", kind="count") + alone("p"),
    "of one with a limit": alone("p", "x", "", "p", kind="timed"),
    "ends": alone("p", "ps", "p", "pe") + TAKEN + alone("p", "r") + TAKEN + alone("e", "") + TAKEN,
    "local": alone("h", "H", "ph", "hx", "Hp", "p", "hhh", "Ht") + TAKEN + alone("H", peer="q"),
    "asked again": [*alone("p", "p"), Take("p", 1), *alone("p"), Ask("p"), *alone("p", "r"), Ask("p"), *alone("P")],
    "duplicates and gaps": [
        *alone("p"),
        *(Come((Record("p", "do", ("p",), shift=shift),)) for shift in (-1, 1, 0, -2, 3, 0)),
        *alone("p", peer="q"),
    ],
    "damage": [Come((Record("p", "do", ("p",), damage=what),)) for what in ("", "body", "", "route", "count", "")],
    "too short": [*alone("p"), Come((Record("p", "do", ("p",), damage="short"),)), *alone("p")],
    "over the limit": [Over(True), *alone("p"), *alone("p", peer="q"), Over(False), *alone("p", peer="q")],
    "paused": [*alone("p"), Paused(Pause.PAUSE), *alone("p", "p"), Paused(Pause.RUN), *alone("p")],
    "drained": [*alone("p"), Paused(Pause.DRAIN), *alone("p", "p"), Paused(Pause.RUN), *alone("p")],
    "old": [*alone("p"), Later(600_000), *alone("p"), Later(600_000), *alone("p"), Take("p", 1), *alone("p", "t", "p")],
}

BEGIN = Clock().ns
EXAMPLES = int(os.environ.get("EXAMPLES", "40"))
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]  # to explain takes very long
IMPLEMENTATIONS = [name for name in ("python", "c") if name in RINGS]


@pytest.mark.parametrize("ring", IMPLEMENTATIONS)
@pytest.mark.parametrize("level", ["memory", "process"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_rare(play: Play, level: str, ring: str, script: str) -> None:
    general = play(level, ring, SCRIPTS[script], False, False)
    for polls in (False, True):
        assert list(differences(general, play(level, ring, SCRIPTS[script], True, polls))) == []


@pytest.mark.parametrize("ring", IMPLEMENTATIONS)
@pytest.mark.parametrize("level", ["memory", "process"])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(steps=st.lists(STEPS, min_size=1, max_size=12), polls=st.booleans())
def test_whatever_comes(play: Play, level: str, ring: str, steps: list[Step], polls: bool) -> None:
    general = play(level, ring, steps, False, False)
    short = play(level, ring, steps, True, polls)
    assert list(differences(general, short)) == []
