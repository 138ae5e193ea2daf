"""Two revisions in turns: `python -m tests.bench.compare BASE` measures this checkout, as it is, next to BASE.

The same benchmarks, those of this checkout, run over the packages of both: BASE is checked out beside it for a while,
its C ring built, and its benchmarks replaced. What BASE cannot do is left out and named. Each run measures each case on
one side and at once on the other, and the side that comes first changes from run to run; so what the machine does
besides meets both. The figures never decide the exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench import arguments, catalogue
from tests.bench.compared import AGREEING, Compared
from tests.bench.machine import ROOT, load
from tests.bench.measure import Case, Series
from tests.bench.run import INTERRUPTED, QUICK, RUNS
from tests.bench.targets import number
from tests.bench.turns import Hello, Turn

END = 30.0  # seconds that a side may take to end what it is doing


class CompareFailed(Exception):
    """There is nothing to compare with."""


class Side:
    """A process that measures with the packages of one checkout."""

    def __init__(self, tree: Path, directory: Path, fraction: float, timeout: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.turns", str(directory), str(fraction), str(timeout)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what is typed at a terminal is for the main process, which then ends this
        )
        try:
            self.hello = msgspec.json.decode(self._read(), type=Hello)
            if Path(self.hello.packages) != tree.resolve():
                raise CompareFailed(f"the packages of {tree} were to be measured, not those of {self.hello.packages}")
        except BaseException:
            self.close()
            raise

    def measure(self, case: Case) -> Turn:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(case.key) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._read(), type=Turn)

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CompareFailed(f"the process of {self._process.args!r} ended with status {self._process.wait(END)}")
        return line

    def close(self) -> None:
        """In the middle of a case, too."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END)
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()


@contextlib.contextmanager
def checked_out(base: str) -> Iterator[Path]:
    """A worktree of the revision with its C ring built and the benchmarks of this checkout; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ringleader-base-") as place:
        tree = Path(place) / "tree"
        try:
            _git("worktree", "add", "--quiet", "--detach", str(tree), base)
            shutil.rmtree(tree / "tests" / "bench", ignore_errors=True)
            shutil.copytree(ROOT / "tests" / "bench", tree / "tests" / "bench", ignore=_caches)
            (tree / "tests" / "__init__.py").touch()
            _build(tree)
            yield tree
        finally:
            with contextlib.suppress(CompareFailed):  # there is none if there is no such revision
                _git("worktree", "remove", "--force", str(tree))


def _build(tree: Path) -> None:
    """What is built from the same sources is the same."""
    if _sources(tree) == _sources(ROOT):
        for built in (ROOT / "bus").glob("*.so"):
            shutil.copy2(built, tree / "bus")
    elif (tree / "setup.py").exists():
        _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree)


def _sources(tree: Path) -> dict[str, bytes]:
    paths = [tree / "setup.py", *(tree / "bus").glob("*.[ch]")]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


_caches = shutil.ignore_patterns("__pycache__")


def _git(*arguments: str) -> None:
    _run(["git", *arguments], ROOT)


def _run(command: list[str], place: Path) -> None:
    """In a session of its own: an interrupt does not leave half of it."""
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, errors="replace", check=False, start_new_session=True
    )
    if done.returncode:
        raise CompareFailed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def compare(cases: Sequence[Case], base: Side, head: Side, runs: int, progress: Console) -> list[Compared]:
    """In turns; a case that fails on a side is measured no more."""
    found = [Compared(case, _why_not(case, base, head)) for case in cases]
    for turn in range(runs):
        for one in found:
            if one.left_out:
                continue
            progress.print(f"run {turn + 1} of {runs}: {one.case.key}")
            pair: dict[str, Series] = {}
            for name, side in (("base", base), ("head", head))[:: -1 if turn % 2 else 1]:
                measured = side.measure(one.case)
                if measured.error:
                    one.left_out = f"{name}: {measured.error}"
                    one.failed = name == "head"
                    break
                pair[name] = measured.series
            else:
                one.base.append(pair["base"])
                one.head.append(pair["head"])
    return found


def _why_not(case: Case, base: Side, head: Side) -> str:
    for name, side in (("base", base), ("head", head)):
        missing = side.hello.missing.get(case.key, "not one of its cases")
        if missing:
            return f"{name}: {missing}"
    return ""


def table(found: Sequence[Compared], base: str) -> Table:
    shown = Table(title=f"This checkout (head) next to {base} (base), medians. Times: how many times better head is.")
    for column in ("work", "with", "figure"):
        shown.add_column(column)
    for column in ("base", "head"):
        shown.add_column(column, justify="right")
    shown.add_column("unit")
    for column in ("times", "lowest", "highest", ""):
        shown.add_column(column, justify="right" if column else "left")
    for one in found:
        for row in one.rows():
            numbers = [number(row.base), number(row.head), row.unit, f"{number(row.times)} x"]
            spread = [number(row.lowest), number(row.highest), row.word]
            shown.add_row(one.case.group, one.case.name, row.figure, *numbers, *spread)
    return shown


def main(given: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if a case failed on this checkout; 2 if there was nothing to compare; 130 after an interrupt."""
    options = _options(given)
    cases = [case for case in catalogue.chosen(options.only, options.skip) if case.ours and not case.missing]
    if problem := arguments.no_case(cases, options.only, options.skip):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of everything that is to be undone
    progress = Console(stderr=True)
    began = load()
    try:
        with contextlib.ExitStack() as stack:
            tree = stack.enter_context(checked_out(options.base))
            place = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="ringleader-bench-", dir=options.directory))
            )
            base, head = (
                stack.enter_context(contextlib.closing(Side(one, place, options.fraction, options.timeout)))
                for one in (tree, ROOT)
            )
            unimportable = {
                key: why for key, why in base.hello.missing.items() if key.startswith(catalogue.UNIMPORTABLE)
            }
            found = compare(cases, base, head, options.runs, progress)
    except KeyboardInterrupt:
        progress.print("interrupted")
        return INTERRUPTED
    except CompareFailed as error:
        progress.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(found, options.base))
    for one in found:
        if one.left_out:
            print(f"left out: {one.case.key}: {one.left_out.splitlines()[-1]}")
    for key, why in unimportable.items():
        print(f"of the base {key}: {why}")
    print(f"\n{options.runs} runs, load {began:.1f} to {load():.1f}. Lowest and highest are of the pairs;")
    print(f"`noise`: the pairs do not agree, or are fewer than {AGREEING}.")
    return int(any(one.failed for one in found))


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description="Two revisions in turns.")
    parser.add_argument("base", help="the revision that this checkout is compared with")
    parser.add_argument(
        "--runs", type=arguments.runs, default=None, help=f"how often each case is measured ({RUNS}; quick: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="everything once, with small counts")
    parser.add_argument(
        "--fraction", type=arguments.fraction, default=None, help=f"of the usual counts (1; quick: {QUICK})"
    )
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases with this in their name; repeatable")
    parser.add_argument("--skip", action="append", metavar="TEXT", help="not those with this in their name; repeatable")
    parser.add_argument("--directory", type=Path, help="where journals are made; its disk is what `power` waits for")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one run of one case may take")
    options = parser.parse_args(given)
    options.runs = options.runs or (1 if options.quick else RUNS)
    options.fraction = options.fraction or (QUICK if options.quick else 1.0)
    return options


if __name__ == "__main__":
    sys.exit(main())
