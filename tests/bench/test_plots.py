"""Plots: which curves a record makes, and that the same record makes the same files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.bench import plots
from tests.bench.curves import POINTS, Plot
from tests.bench.curves import plots as planned
from tests.bench.machine import Machine, Revision
from tests.bench.measure import P50, P99, RATE, Case, Figure, Sampled, outcomes
from tests.bench.report import Results

HOPS = Figure("hops per core", "hops", "hops/s", less_is_better=False)


def record() -> Results:
    """A small one: two sizes, two batches, latencies and a chain."""

    def one(group: str, name: str, *figures: Figure, ours: bool = True, **series: list[float]) -> Sampled:
        return Sampled(Case(group, name, lambda scale: {}, figures or (RATE,), ours=ours), [series])

    sampled = [
        one("raw, 64 B", "ring, C", rate=[8e6]),
        one("raw, 64 B", "pyzmq PAIR, ipc", rate=[5e5], ours=False),
        one("payload, 1 MiB", "ring, C", rate=[4e3]),
        one("payload, 1 MiB", "pyzmq PAIR, ipc", rate=[1e3], ours=False),
        one("payload, 64 B", "memory", rate=[1e6]),
        one("payload, 1 MiB", "memory", rate=[5e3]),
        one("raw, 64 B, batches of 1", "ring, C", rate=[1e6]),
        one("64 B at power, by transaction", "1 at once", rate=[2e3]),
        one("64 B at power, by transaction", "64 at once", rate=[1e5]),
        one("round trip, hot", "handlers, process", P50, P99, trips=[float(n) for n in range(1, 500)]),
        one("kill to next message", "process", Figure("p50", "kills", "ms"), kills=[10.0, 20.0]),
        one("chain of workers, process", "2 workers", RATE, HOPS, rate=[1e6], hops=[1e6]),
        one("chain of workers, process", "4 workers", RATE, HOPS, rate=[4e5], hops=[9e5]),
        Sampled(Case("raw, 64 B", "faster-fifo", lambda scale: {}, missing="not installed")),
    ]
    return Results(
        at="2026-01-01T00:00:00+00:00",
        took_seconds=1.0,
        machine=Machine("Linux", "one", 2, 1, "ext4"),
        versions={},
        revision=Revision("", False),
        options={},
        load=[1.0, 1.0],
        cases=outcomes(sampled),
        floors=[],
    )


def curves(name: str) -> Plot:
    (found,) = (plot for plot in planned(record().cases) if plot.name == name)
    return found


def test_the_sizes_of_a_transport_are_one_curve_ours_first() -> None:
    found = curves("size").curves
    assert [(one.label, one.ours) for one in found] == [
        ("ring, C", True),
        ("handlers, memory", True),
        ("pyzmq PAIR, ipc", False),
    ]
    assert list(found[0].points) == [(64, 8e6), (1 << 20, 4e3)]
    assert list(curves("bytes").curves[0].points) == [(64, 64 * 8e6), (1 << 20, 4e3 * (1 << 20))]


def test_batches_of_the_ring_and_of_transactions() -> None:
    assert {one.label: one.points for one in curves("batch").curves} == {
        "ring, C, in one call": ((1, 1e6), (256, 8e6)),
        "handlers, power, in one transaction": ((1, 2e3), (64, 1e5)),
    }


def test_a_distribution_goes_to_its_largest_value_in_few_points() -> None:
    trips, kills = curves("latency").curves
    assert (trips.label, kills.label) == ("hot: handlers, process", "kill to next message")
    assert len(trips.points) == POINTS
    assert trips.points[-1] == (499.0, 1.0)
    assert kills.points[-1] == (20_000.0, 1.0)


def test_a_chain_shows_messages_and_hops() -> None:
    assert {one.label: one.points[-1] for one in curves("workers").curves} == {
        "messages through the whole chain": (4, 4e5),
        "hops, of all workers together": (4, 12e5),
        "hops in a second of one processor": (4, 9e5),
    }


def test_nothing_measured_draws_nothing() -> None:
    assert planned([]) == []


def test_the_same_record_makes_the_same_small_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the bench extra")
    path = tmp_path / "record.json"
    path.write_bytes(msgspec.json.encode(record()))
    for place in ("one", "two"):
        assert plots.main([str(path), "--output", str(tmp_path / place)]) == 0
    drawn = sorted((tmp_path / "one").iterdir())
    assert [one.name for one in drawn] == ["batch.svg", "bytes.svg", "latency.svg", "size.svg", "workers.svg"]
    for one in drawn:
        text = one.read_bytes()
        assert text == (tmp_path / "two" / one.name).read_bytes()
        assert len(text) < 100_000
        assert b"<svg" in text
        assert b"2026" not in text


def test_without_a_record_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "without", lambda *_: "")
    monkeypatch.chdir(tmp_path)
    assert plots.main([]) == 2
    assert "run `make bench` first" in capsys.readouterr().err
