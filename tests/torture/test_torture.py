"""Random SIGKILLs under load. On a failure the message says which command repeats it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.torture.oracle import ledger_problems, outside_problems
from tests.torture.outside import remembered
from tests.torture.run import torture
from tests.torture.sabotage import MUTATIONS
from tests.torture.topology import Seen

WORKER_KILLS = 1000
SYSTEM_KILLS = 100


def check(folder: Path, kills: int, system_kills: int) -> None:
    seed = random.randrange(10**6)
    verdict = torture(folder, seed=seed, kills=kills, system_kills=system_kills)
    assert not verdict.wrong, (
        f"{verdict}\nagain: python -m tests.torture --seed {seed} --kills {kills} --system-kills {system_kills}"
    )
    assert verdict.kills >= kills
    assert verdict.system_kills == system_kills
    assert verdict.items > 100


@pytest.mark.timeout(600)
def test_random_kills_of_workers_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    check(tmp_path, WORKER_KILLS, 0)


@pytest.mark.timeout(600)
def test_kills_of_the_whole_system_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    check(tmp_path, 0, SYSTEM_KILLS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_random_kills_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    check(tmp_path, 10_000, 200)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
def test_sabotage_is_caught(tmp_path: Path, mutation: str) -> None:
    """The same torture over a runtime that does one thing wrong must not pass. (A few kills may miss the moment.)"""
    verdicts = (
        torture(tmp_path / str(kills), seed=kills, kills=kills, mutation=mutation) for kills in (15, 40, 100, 200)
    )
    assert any(verdict.wrong for verdict in verdicts), mutation


def test_the_ledger_oracle_sees_a_gap(tmp_path: Path) -> None:
    ledger = tmp_path / "Join"
    ledger.write_text("left 1\nleft 2\nleft 2\nright 1\nleft 1\nleft 3\n")
    assert not ledger_problems(ledger)
    ledger.write_text("left 1\nleft 3\n")
    assert ledger_problems(ledger) == ["ledger of Join: left went from 1 to 3"]


def test_the_oracle_sees_what_was_accepted_and_lost(tmp_path: Path) -> None:
    def sink(outside: int, *skipped: int) -> Seen:
        return Seen(0, {}, {}, [], outside, list(skipped))

    (tmp_path / "outside-asked").write_text("1\n2\n3\n4\n")
    (tmp_path / "outside-accepted").write_text("1\n2\n4\n")
    asked, accepted = remembered(tmp_path)
    assert not outside_problems(sink(4), asked, accepted)
    assert not outside_problems(sink(4, 3), asked, accepted)  # killed while it was being sent
    assert outside_problems(sink(4, 2), asked, accepted)
    assert outside_problems(sink(3), asked, accepted)
    assert outside_problems(sink(5), asked, accepted)
