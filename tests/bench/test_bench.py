"""The benchmarks themselves: everything runs and leaves the record it should. Never a speed: machines are busy."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.bench import compare, journals, report, targets
from tests.bench.catalogue import cases
from tests.bench.channels import sleep_until
from tests.bench.machine import ROOT
from tests.bench.measure import P99, RATE, Case, Figure, Sampled, Scale, outcomes, quantile
from tests.bench.pairs import Meet, SideFailed, run_pair, uninterrupted
from tests.bench.report import Results
from tests.bench.run import main, measure
from tests.bench.targets import AWAITED, FLOORS, Floor, lines, verdicts

DEADLINE = 500.0
pytestmark = pytest.mark.timeout(600)  # one of them runs every benchmark
# Peers that take long to start have tests of their own, and of cases that differ in a number only one is run.
LEFT_OUT = (
    "Ray", "Redis", "NATS", "raw, 1 KiB", "payload, 1 KiB", "16 KiB", "64 KiB", "256 KiB", "payload, 64 B/power",
    "1 MiB/multiprocessing", "batches of 8", "batches of 64", " 8 at once", "/8 at once", "64 at once", "512 at once",
    "4096 at once", "process/2 workers", "3 workers", "6 workers", "process/8 workers", "memory, batch handler",
    "power, batch handler", "hot/handlers, memory", "cold/handlers, memory", "cold/pyzmq", "cold/multiprocessing",
    "cold/ring, codec",
    "B each/journal", "B each/SQLite", "256 at once/memory", "256 at once/journal", "there and back/memory",
)  # fmt: skip


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Results]:
    """One run of everything with tiny counts, as `make bench` does it."""
    output = tmp_path_factory.mktemp("bench") / "results"
    skip = [word for text in LEFT_OUT for word in ("--skip", text)]
    done = bench("--runs", 1, "--fraction", 0.001, "--output", output, *skip)
    assert done.returncode == 0, done.stderr
    (written,) = output.iterdir()
    return done, msgspec.json.decode(written.read_bytes(), type=Results)


def test_every_case_is_measured_or_says_why_not(ran: tuple[subprocess.CompletedProcess[str], Results]) -> None:
    _, results = ran
    expected = {case.key: case for case in cases() if not any(text in case.key for text in LEFT_OUT)}
    assert {f"{one.group}/{one.name}" for one in results.cases} == set(expected)
    for one in results.cases:
        case = expected[f"{one.group}/{one.name}"]
        assert one.skipped == case.missing
        if one.skipped:
            assert not one.figures
            assert not one.samples
            continue
        assert list(one.figures) == [figure.name for figure in case.figures]
        for figure in one.figures.values():
            assert 0 < figure.low <= figure.value <= figure.high
            assert figure.unit
        assert len(one.samples) == 1
        assert all(value > 0 for series in one.samples[0].values() for value in series)
        assert all(one.samples[0].values())


def test_peers_have_a_ratio_and_ours_have_none(ran: tuple[subprocess.CompletedProcess[str], Results]) -> None:
    for one in ran[1].cases:
        assert list(one.ratios) == ([] if one.ours else list(one.figures))
        assert bool(one.versus) == bool(one.ratios)
        assert all(ratio > 0 for ratio in one.ratios.values())


def test_the_record_says_what_it_was_measured_on(ran: tuple[subprocess.CompletedProcess[str], Results]) -> None:
    results = ran[1]
    assert results.format == report.FORMAT
    assert results.machine.processors == len(os.sched_getaffinity(0))
    assert results.versions["python"].startswith("CPython 3.")
    assert results.versions["ring"] in {"c", "python"}
    assert results.options == {"runs": 1, "fraction": 0.001}
    assert results.took_seconds > 0
    assert len(results.load) == 2


def test_every_floor_has_a_case_and_a_figure() -> None:
    keys = {case.key: [figure.name for figure in case.figures] for case in cases()}
    assert {floor.key for floor in FLOORS} - set(keys) == AWAITED
    for floor in FLOORS:
        assert floor.key in AWAITED or floor.figure in keys[floor.key]
        key, _, figure = floor.over.rpartition(": ")
        assert not floor.over or figure in keys[key]


def test_every_floor_has_a_line(ran: tuple[subprocess.CompletedProcess[str], Results]) -> None:
    done, results = ran
    assert [verdict.limit for verdict in results.floors] == [floor.limit for floor in FLOORS]
    for verdict, line in zip(results.floors, lines(results.floors), strict=True):
        assert (verdict.value is None) == (verdict.passed is None)
        assert line in done.stdout


RECOVERY = ["--only", "recovery", "--runs", "1", "--fraction", "0.01", "--output"]


def test_a_floor_that_is_not_reached_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = journals.cases()[0]
    unreachable = Floor("recovery, us", case.key, "each", 1e-9, False)
    monkeypatch.setattr(targets, "verdicts", lambda found: verdicts(found, [unreachable]))
    assert main([*RECOVERY, str(tmp_path)]) == 0
    assert "FAIL         recovery, us <= 1e-09: " in capsys.readouterr().out


def test_a_case_that_fails_is_named_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journals, "_snapshot", None)
    assert main([*RECOVERY, str(tmp_path)]) == 1
    assert "not measured: TypeError" in capsys.readouterr().out
    (written,) = tmp_path.iterdir()
    assert "TypeError" in msgspec.json.decode(written.read_bytes(), type=Results).cases[0].skipped


def test_a_floor_against_a_peer_that_is_missing_is_not_measured() -> None:
    ours = Sampled(Case("group", "ours", lambda scale: {}, ours=True), [{"rate": [8.0]}])
    peer = Sampled(Case("group", "peer", lambda scale: {}, missing="not installed"))
    floor = Floor("times", "group/ours", "rate", 2.0, over="group/peer: rate")
    assert verdicts(outcomes([ours, peer]), [floor])[0].passed is None
    peer.runs.append({"rate": [3.0]})
    assert verdicts(outcomes([ours, peer]), [floor])[0].value == pytest.approx(8 / 3)


def test_a_figure_is_the_median_over_the_runs() -> None:
    runs: list[dict[str, list[float]]] = [{"rate": [value]} for value in (5.0, 1.0, 2.0)]
    summary = RATE.of(runs)
    assert (summary.value, summary.low, summary.high) == (2.0, 1.0, 5.0)
    many: list[dict[str, list[float]]] = [{"trips": [float(n) for n in range(start, start + 100)]} for start in (1, 2)]
    assert P99.of(many).value == 99.5


def test_a_pooled_figure_is_over_the_measurements_of_all_runs() -> None:
    runs: list[dict[str, list[float]]] = [{"kills": [1.0, 2.0]}, {"kills": [9.0, 3.0]}]
    assert Figure("p99", "kills", "ms", 0.99, pooled=True).of(runs).value == 9.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.75) == 3.0


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    def group(unit: str, less: bool, ours: float, peer: float) -> float:
        figure = Figure("figure", "series", unit, less_is_better=less)
        both = [
            Sampled(Case("group", name, lambda scale: {}, (figure,), ours=name == "ours"), [{"series": [value]}])
            for name, value in (("peer", peer), ("ours", ours))
        ]
        return outcomes(both)[0].ratios["figure"]

    assert group("msg/s", False, 8.0, 2.0) == 4.0
    assert group("us", True, 8.0, 2.0) == 0.25


def test_a_peer_is_compared_with_the_case_that_it_names() -> None:
    def one(name: str, value: float, ours: bool = True, versus: str = "") -> Sampled:
        return Sampled(Case("tell", name, lambda scale: {}, ours=ours, versus=versus), [{"rate": [value]}])

    found = outcomes([one("memory", 8.0), one("power", 2.0), one("any", 1.0, False), one("safe", 1.0, False, "power")])
    assert [(each.versus, each.ratios) for each in found[2:]] == [
        ("tell/memory", {"rate": 8.0}),
        ("tell/power", {"rate": 2.0}),
    ]


def test_ratios_are_shown_with_both_figures_and_say_what_is_not_installed() -> None:
    ours = Sampled(Case("group", "ours", lambda scale: {}, ours=True), [{"rate": [8.0]}])
    peer = Sampled(Case("group", "peer", lambda scale: {}), [{"rate": [2.0]}])
    absent = Sampled(Case("group", "absent", lambda scale: {}, missing="absent is not installed"))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report.ratios(outcomes([ours, peer, absent])))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    assert ["group", "ours", "peer", "rate", "8", "2", "msg/s", "4 x"] in rows
    assert any(row[2:4] == ["absent", "not measured: absent is not installed"] for row in rows if row)


def test_cases_take_turns_and_one_that_fails_is_not_measured_again(tmp_path: Path) -> None:
    turns: list[str] = []

    def case(name: str, fails: bool = False) -> Case:
        def run(scale: Scale) -> dict[str, list[float]]:
            turns.append(name)
            if fails:
                raise RuntimeError("no room")
            return {"rate": [1.0]}

        return Case("group", name, run)

    said: list[str] = []
    sampled = measure([case("a"), case("b", fails=True), case("c")], Scale(tmp_path), 2, said.append)
    assert turns == ["a", "b", "c", "a", "c"]
    assert [one.failed for one in sampled] == ["", "RuntimeError: no room", ""]
    assert outcomes(sampled)[1].skipped == "RuntimeError: no room"


@pytest.fixture
def pairs() -> Iterator[None]:
    """The fork server of this process ends with the test."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def fails(meet: Meet) -> None:
    meet()
    raise RuntimeError("out of luck")


def hangs(meet: Meet) -> None:
    meet()
    while True:
        pass


def dies(meet: Meet) -> None:
    meet()
    os._exit(3)


def waits(meet: Meet) -> None:
    meet()
    meet()


@pytest.mark.usefixtures("pairs")
def test_a_side_that_raises_is_told_with_its_traceback() -> None:
    with pytest.raises(SideFailed, match="out of luck"):
        run_pair((waits, ()), (fails, ()), 30)


@pytest.mark.usefixtures("pairs")
def test_a_side_that_hangs_or_dies_ends_the_measurement_and_leaves_no_process() -> None:
    with pytest.raises(SideFailed, match="too long"):
        run_pair((waits, ()), (hangs, ()), 1.5)
    with pytest.raises(SideFailed, match="died"):
        run_pair((waits, ()), (dies, ()), 30)


class EarlyBell:
    """A bell whose first waits end without a reason, as the contract allows."""

    def __init__(self, early: int) -> None:
        self.early = early

    def arm(self) -> None: ...

    def disarm(self) -> None: ...

    def wait(self, timeout: float) -> bool:
        self.early -= 1
        return self.early < 0


def test_a_wait_that_ends_early_is_waited_for_again() -> None:
    bell = EarlyBell(3)
    sleep_until(bell, lambda: False)
    assert bell.early == -1
    with pytest.raises(TimeoutError):
        sleep_until(EarlyBell(1_000_000_000), lambda: False, patience=0.01)


# Also where whoever runs the tests has had interrupts ignored.
MAIN = """
import signal, sys
from tests.bench.run import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_an_interrupt_waits_while_a_process_is_told_what_it_is_to_do() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - where it is raised is what is tested
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached.append("inside")
        reached.append("behind")
    assert reached == ["inside"]


def test_an_interrupt_ends_it_with_all_that_it_has_started(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "--only", "B/multiprocessing.Pipe", "--runs", "100000", "--directory", tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stderr is not None
    while "run 2 of" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, error = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (130, "")
    assert error.endswith("interrupted: nothing was written\n")
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_cases_can_be_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "kill", "--only", "idle", "--skip", "edges"]) == 0
    assert capsys.readouterr().out.splitlines() == ["kill to next message/process", "8 idle workers/process"]


@pytest.mark.parametrize("program", [main, compare.main])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--runs", "0"], "0 runs measure nothing"),
        (["--fraction", "0"], "0 of the usual counts is nothing"),
        ([], "no case is left by --only 'tel, 3'"),
    ],
)
def test_what_would_measure_nothing_is_told(
    program: Callable[[Sequence[str]], int], wrong: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["HEAD"] if program is compare.main else []
    try:
        code: object = program([*base, "--only", "tel, 3", *wrong])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert told in capsys.readouterr().err
