"""All flights that left New York City in 2013, counted by six handlers in five worker processes.

    python examples/flights.py                       the whole file: a progress bar, the table of carriers, the rate
    python examples/flights.py --kill 10             ... while ten workers, picked at random, are killed with SIGKILL
    python examples/flights.py --kill 10 --kill-all  ... and once, in the middle, all processes; then the run is resumed

    reader --Row--> parser --Flight-----> carriers, airports --figures--> report
                       `-----Rejected---> carriers, airports, rejects --figures--^

The last line compares every figure with a direct computation over the same file. Exit status 0 if they are equal, 1 if
they differ, 2 if the run could not be made.

This file has the topology and the command line, flights_messages.py and flights_handlers.py what it is made of,
flights_direct.py the direct computation and what a row means; flights_file.py finds the data, flights_kill.py kills.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from flights_direct import Figures, direct
from flights_file import DataMissing, OtherFile, airlines, unpack
from flights_handlers import Airports, Carriers, Parser, Reader, Rejects, Reporter
from flights_kill import Kills, Orphans
from flights_messages import (
    AirportFigures,
    CarrierFigures,
    Counted,
    End,
    Flight,
    GetReport,
    Rejected,
    RejectFigures,
    Report,
    Row,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from actors import RingleaderError, System, Topology

POLL = 0.05  # seconds between two looks at the run
EQUAL, DIFFERENT, NOT_RUN = 0, 1, 2


def topology(path: Path, directory: Path, rate: int, kills: int) -> Topology:
    # A worker that dies too often is given up; the deaths that were asked for come on top.
    app = Topology("flights", durability="process", directory=directory, max_restarts=5 + kills)
    app.worker("input", reader=Reader.spec(path=str(path), rate=rate))
    app.worker("parse", parser=Parser, rejects=Rejects)
    app.worker("carriers", carriers=Carriers)
    app.worker("airports", airports=Airports)
    app.worker("report", report=Reporter)
    app.route("reader", Row, to="parser")
    app.route("reader", End, to="parser")
    app.route("parser", Flight, to=["carriers", "airports"])
    app.route("parser", Rejected, to=["carriers", "airports", "rejects"])
    app.route("parser", End, to=["carriers", "airports", "rejects"])
    app.route("carriers", CarrierFigures, to="report")
    app.route("airports", AirportFigures, to="report")
    app.route("rejects", RejectFigures, to="report")
    for counting in ("carriers", "airports", "rejects"):
        app.route(counting, Counted, to="report")
    app.external("report", GetReport)
    return app


class RunFailed(Exception):
    pass


class Sight(msgspec.Struct):
    """One look at the run: what is counted, durably, and the processes at work."""

    report: Report
    supervisor: int
    workers: dict[str, int]


def sights(system: System) -> Generator[Sight, None, None]:
    """Looks at the run until it is complete."""
    while True:
        report = system.ask("report", GetReport(), timeout=60)
        assert isinstance(report, Report)
        status = system.status()
        assert status.supervisor is not None
        yield Sight(report, status.supervisor.pid, {worker.name: worker.pid for worker in status.workers if worker.pid})
        if report.complete:
            return
        time.sleep(POLL)


def here(path: Path, directory: Path, rate: int, kills: int) -> Generator[Sight, None, None]:
    """Runs the system in this process and its workers."""
    with topology(path, directory / "run", rate, kills).start() as system:
        yield from sights(system)


def serve(path: Path, directory: Path, rate: int, kills: int) -> None:
    """What a child process does: the same, and every sight goes to its standard output."""
    with closing(here(path, directory, rate, kills)) as seen:
        for sight in seen:
            print(msgspec.json.encode(sight).decode(), flush=True)


def there(directory: Path, rate: int, kills: int) -> Generator[Sight, None, None]:
    """Runs the system in a child process, so that its supervisor can be killed too. Ends early if that happens."""
    options = ["--directory", str(directory), "--rate", str(rate), "--kill", str(kills)]
    command = [sys.executable, __file__, "--serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield msgspec.json.decode(line, type=Sight)
        if child.wait():
            raise RunFailed(f"the system ended with exit status {child.returncode}")


def watch(
    directory: Path, path: Path, rows: int, kills: Kills, args: argparse.Namespace, console: Console
) -> tuple[Report, int]:
    """Runs the system and kills what is to be killed. Returns the complete report, and the rows counted before."""
    before = None if (directory / "run").exists() else 0
    columns = (TextColumn("flights"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("flights", total=rows)
        while True:
            options = (directory, args.rate, args.kill)
            with closing(there(*options) if args.kill_all else here(path, *options)) as seen:
                for sight in seen:
                    row = sight.report.rows
                    before = row if before is None else before
                    progress.update(bar, completed=row)
                    report = sight.report
                    if report.complete:
                        continue
                    if args.kill_all and (killed := kills.system(row, sight.supervisor, sight.workers)):
                        console.print(f"{killed}; it resumes from {directory}", highlight=False)
                        break
                    while killed := kills.worker(row, sight.workers):
                        console.print(killed, highlight=False)
                else:
                    return report, before or 0


def figures(report: Report) -> dict[tuple[str, str], Figures]:
    """The figures of the report as the direct computation has them."""
    found = {}
    for about, name, items in (
        ("carrier", "carrier", report.carriers),
        ("airport", "airport", report.airports),
        ("reject", "reason", report.rejects),
    ):
        for item in items:
            values = msgspec.structs.asdict(item)
            found[about, values.pop(name)] = values
    return found


def differences(found: Mapping[tuple[str, str], Figures], expected: Mapping[tuple[str, str], Figures]) -> list[str]:
    """Every figure that the two do not agree about, in words."""
    lines: list[str] = []
    for about, name in sorted(found.keys() | expected.keys()):
        ours, theirs = found.get((about, name), {}), expected.get((about, name), {})
        lines.extend(
            f"{about} {name or '(unreadable)'}, {figure}: {ours.get(figure, 'nothing')} by the handlers, "
            f"{theirs.get(figure, 'nothing')} directly"
            for figure in ours | theirs
            if figure not in ours or figure not in theirs or ours[figure] != theirs[figure]
        )
    return lines


def show(report: Report, console: Console) -> None:
    table = Table("", "carrier", box=None, padding=(0, 2, 0, 0))
    for title in ("flights", "cancelled", "rejected", "mean", "95 %"):
        table.add_column(title, justify="right")
    names = airlines()
    for carrier in sorted(report.carriers, key=lambda carrier: -carrier.flights):
        mean = carrier.arrival_delay_sum / carrier.arrival_delays if carrier.arrival_delays else math.nan
        table.add_row(
            carrier.carrier or "?",
            names.get(carrier.carrier, ""),
            *(f"{number:,}" for number in (carrier.flights, carrier.cancelled, carrier.rejected)),
            f"{mean:.2f}" if carrier.arrival_delays else "",
            "" if carrier.arrival_delay_p95 is None else str(carrier.arrival_delay_p95),
        )
    console.print("Arrival delays in minutes, by carrier:", table, sep="\n")
    for reject in report.rejects:
        console.print(f"{reject.rows:,} rows rejected: {reject.reason} (first: row {reject.first:,})", highlight=False)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts all flights that left New York City in 2013.")
    parser.add_argument("--kill", type=natural, default=0, metavar="N", help="kill N random workers while it runs")
    parser.add_argument("--kill-all", action="store_true", help="kill the whole system in the middle, and resume")
    parser.add_argument("--seed", type=int, help="for what --kill kills, and when")
    parser.add_argument("--rows", type=natural, metavar="N", help="only the first N flights")
    parser.add_argument(
        "--rate", type=natural, default=0, metavar="N", help="read about N flights per second, not more"
    )
    parser.add_argument("--directory", type=Path, help="keep the run here; a run that was killed is resumed")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    console = Console()
    with TemporaryDirectory(prefix="ringleader-flights-") as temporary:
        directory: Path = args.directory or Path(temporary)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path, rows = unpack(directory, args.rows)
            if args.serve:
                serve(path, directory, args.rate, args.kill)
                return EQUAL
            return run(path, rows, directory, args, console)
        except (DataMissing, OtherFile, Orphans, RunFailed, RingleaderError) as error:
            print(f"flights.py: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not args.serve:
                again = f"; --directory {directory} resumes it" if args.directory else ""
                print(f"flights.py: interrupted{again}", file=sys.stderr)
        return NOT_RUN


def run(path: Path, rows: int, directory: Path, args: argparse.Namespace, console: Console) -> int:
    seed = random.randrange(1_000_000) if args.seed is None else args.seed
    kills = Kills(seed, rows, args.kill, args.kill_all)
    start = time.monotonic()
    report, before = watch(directory, path, rows, kills, args, console)
    seconds = time.monotonic() - start
    show(report, console)
    if before:
        console.print(f"{before:,} flights were counted by an earlier run in {directory}", highlight=False)
    counted = rows - before
    console.print(f"{counted:,} flights in {seconds:.1f} s: {counted / seconds:,.0f} flights/s", highlight=False)
    if args.kill or args.kill_all:
        console.print(f"{kills.summary} (--seed {seed})", highlight=False)
    found, expected = figures(report), direct(path)
    wrong = differences(found, expected)
    for line in wrong:
        print(line)
    if wrong:
        print(f"DIFFERENT: {len(wrong)} figures differ from a direct computation over the same file")
        return DIFFERENT
    count = sum(map(len, found.values()))
    print(f"equal to the flight: all {count:,} figures are those of a direct computation over the same file")
    return EQUAL


if __name__ == "__main__":
    sys.exit(main())
