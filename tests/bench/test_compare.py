"""Two revisions in turns: what is said of them, and that nothing of the other one stays. Never a speed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import catalogue, compare
from tests.bench.compared import AGREEING, Compared, word
from tests.bench.machine import ROOT
from tests.bench.measure import RATE, Case, Figure
from tests.bench.turns import Hello, Turn

DEADLINE = 60.0
LATENCY = Figure("p50", "trips", "us")


def compared(base: list[float], head: list[float], figure: Figure = RATE) -> Compared:
    case = Case("group", "ours", lambda scale: {}, (figure,), ours=True)
    return Compared(case, base=[{figure.series: [one]} for one in base], head=[{figure.series: [one]} for one in head])


def test_more_messages_and_less_time_are_better() -> None:
    (row,) = compared([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).rows()
    assert (row.base, row.head, row.times, row.lowest, row.highest) == (2.0, 4.0, 2.0, 2.0, 2.0)
    (row,) = compared([1.0, 2.0, 4.0], [2.0, 4.0, 8.0], LATENCY).rows()
    assert row.times == 0.5


def test_the_spread_is_that_of_pairs_and_not_of_figures() -> None:
    (row,) = compared([1.0, 10.0, 5.0], [1.1, 11.0, 5.5]).rows()
    assert (round(row.lowest, 6), round(row.highest, 6)) == (1.1, 1.1)


def test_pairs_that_do_not_agree_and_few_pairs_are_noise() -> None:
    assert word(1.1, 1.3, AGREEING) == "better"
    assert word(0.7, 0.9, AGREEING) == "WORSE"
    assert word(0.9, 1.3, AGREEING) == word(1.1, 1.3, AGREEING - 1) == "noise"


def test_a_figure_that_one_side_does_not_know_has_no_row() -> None:
    assert list(compared([0.0], [2.0]).rows()) == []
    assert list(Compared(Case("group", "ours", lambda scale: {})).rows()) == []


class StandIn:
    """A side whose cases take no time."""

    def __init__(self, missing: dict[str, str], errors: dict[str, str] | None = None) -> None:
        self.hello = Hello("", missing)
        self.errors = errors or {}
        self.asked: list[str] = []

    def measure(self, case: Case) -> Turn:
        self.asked.append(case.name)
        error = self.errors.get(case.key, "")
        return Turn({} if error else {"rate": [1.0]}, error)


def both(base: StandIn, head: StandIn, cases: list[Case], runs: int) -> list[Compared]:
    return compare.compare(cases, base, head, runs, Console(quiet=True))  # type: ignore[arg-type]


def cases(*names: str) -> list[Case]:
    return [Case("group", name, lambda scale: {}, ours=True) for name in names]


def test_the_side_that_comes_first_changes() -> None:
    turns: list[str] = []

    class Noted(StandIn):
        def measure(self, case: Case) -> Turn:
            turns.append("base" if self is base else "head")
            return super().measure(case)

    base, head = Noted({"group/a": ""}), Noted({"group/a": ""})
    (one,) = both(base, head, cases("a"), 2)
    assert turns == ["base", "head", "head", "base"]
    assert len(one.base) == len(one.head) == 2


def test_what_the_base_cannot_do_is_left_out_and_named() -> None:
    everything = {"group/a": "", "group/b": "", "group/c": ""}
    base = StandIn({"group/a": "", "group/b": "ImportError: no such thing"}, {"group/a": "TypeError: of old"})
    found = both(base, StandIn(everything), cases("a", "b", "c"), 2)
    assert [one.left_out for one in found] == [
        "base: TypeError: of old",
        "base: ImportError: no such thing",
        "base: not one of its cases",
    ]
    assert base.asked == ["a"]
    assert not any(one.failed for one in found)


def test_what_fails_on_this_checkout_is_a_failure() -> None:
    (one,) = both(StandIn({"group/a": ""}), StandIn({"group/a": ""}, {"group/a": "ValueError: new"}), cases("a"), 2)
    assert (one.left_out, one.failed) == ("head: ValueError: new", True)


def test_a_module_of_cases_that_cannot_be_imported_is_one_case_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MODULES", ("journals", "of_the_future"))
    with pytest.raises(ImportError):
        catalogue.cases()
    *others, last = catalogue.cases(lenient=True)
    assert len(others) == 2
    assert "of_the_future" in last.missing


def worktrees() -> str:
    return subprocess.run(
        ["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=DEADLINE
    ).stdout


# Also where whoever runs the tests has had interrupts ignored.
MAIN = """
import signal, sys
from tests.bench.compare import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def start(*arguments: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments, "--directory", str(directory)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a checkout")
def test_an_interrupt_leaves_no_worktree_no_directory_and_no_process(tmp_path: Path) -> None:
    process = start("HEAD", "--only", "recovery of 20", "--fraction", "0.01", "--runs", "100000", directory=tmp_path)
    assert process.stderr is not None
    deadline = time.monotonic() + DEADLINE
    while "run 2 of" not in process.stderr.readline():
        assert process.poll() is None
        assert time.monotonic() < deadline
    assert str(tmp_path) in worktrees()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, error = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in error
    assert str(tmp_path) not in worktrees()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a checkout")
def test_a_base_that_does_not_exist_is_told(tmp_path: Path) -> None:
    process = start("no-such-revision", "--only", "recovery", directory=tmp_path)
    out, error = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (2, "")
    assert re.search("error: .*invalid reference: no-such-revision", error, re.DOTALL)
    assert not list(tmp_path.iterdir())
