"""Runs the benchmarks, interleaved: every run measures each case once, in the same order.

What the machine does besides then meets all of them alike. The figures never decide the exit status.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from actors.process import stop_forkserver
from tests.bench import arguments, catalogue, machine, report, targets
from tests.bench.measure import Case, Sampled, Scale, outcomes

RUNS = 5
QUICK = 0.05  # of the counts, in a smoke run
INTERRUPTED = 130  # exit status


def measure(cases: Sequence[Case], scale: Scale, runs: int, say: Callable[[str], None]) -> list[Sampled]:
    """A case that fails is measured no more, and says why."""
    sampled = [Sampled(case) for case in cases]
    for number in range(1, runs + 1):
        for one in sampled:
            if one.case.missing or one.failed:
                continue
            say(f"run {number} of {runs}: {one.case.key}")
            try:
                one.runs.append(one.case.run(scale))
            except Exception as error:  # the others are still worth measuring
                one.failed = f"{type(error).__name__}: {error}"
                say(f"{one.case.key} failed: {one.failed}")
    return sampled


def main(given: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a case failed although everything for it is there; 2: no case is left; 130: interrupted."""
    options = _options(given)
    chosen = catalogue.chosen(options.only, options.skip)
    if problem := arguments.no_case(chosen, options.only, options.skip):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.key for case in chosen))
        return 0
    at, began, load = datetime.now(UTC), time.monotonic(), [machine.load()]
    progress = Console(stderr=True)
    try:
        with tempfile.TemporaryDirectory(prefix="ringleader-bench-", dir=options.directory) as directory:
            here = machine.machine(Path(directory))
            scale = Scale(Path(directory), options.fraction, options.timeout)
            with progress.status("") as status:
                say = status.update if progress.is_terminal else progress.print
                sampled = measure(chosen, scale, options.runs, say)
    except KeyboardInterrupt:  # whatever was started has been stopped on the way here
        progress.print("interrupted: nothing was written")
        return INTERRUPTED
    finally:
        stop_forkserver()
    load.append(machine.load())
    found = outcomes(sampled)
    results = report.Results(
        at=at.isoformat(timespec="seconds"),
        took_seconds=time.monotonic() - began,
        machine=here,
        versions=machine.versions(),
        revision=machine.revision(),
        options={"runs": options.runs, "fraction": options.fraction},
        load=load,
        cases=found,
        floors=targets.verdicts(found),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{at:%Y-%m-%dT%H%M%S.%f}.json"
    path.write_bytes(msgspec.json.encode(results))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(report.table(found))
    if (ratios := report.ratios(found)).rows:
        console.print(ratios)
    print("\n".join([*targets.lines(results.floors), "", f"load {load[0]:.1f} to {load[1]:.1f}, every sample: {path}"]))
    return int(any(one.failed for one in sampled))


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="The runtime next to its peers.")
    parser.add_argument(
        "--runs", type=arguments.runs, default=None, help=f"how often each case is measured ({RUNS}; quick: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: everything once, with small counts")
    parser.add_argument(
        "--fraction", type=arguments.fraction, default=None, help=f"of the usual counts (1; quick: {QUICK})"
    )
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases with this in their name; repeatable")
    parser.add_argument("--skip", action="append", metavar="TEXT", help="not those with this in their name; repeatable")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--directory", type=Path, help="where journals are made; its disk is what `power` waits for")
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="directory of the JSON output")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one run of one case may take")
    options = parser.parse_args(given)
    options.runs = options.runs or (1 if options.quick else RUNS)
    options.fraction = options.fraction or (QUICK if options.quick else 1.0)
    return options
