"""The command `ringleader logs`: what workers and supervisor have logged, from the files in the run directory.

It asks nobody, so it works while the system runs, while it hangs, after it has stopped and after it was killed.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from actors.cli_options import HomeOption, SystemArgument

if TYPE_CHECKING:
    from actors.log_file import Follower
    from actors.log_record import Line

UNREADABLE, USAGE, UNKNOWN, NOT_YOURS = 1, 2, 4, 5
FOLLOWED = 10  # lines shown before what is new, unless told otherwise


def logs(
    system: SystemArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is logged, over restarts too, until Ctrl-C.")
    ] = False,
    worker: Annotated[str | None, typer.Option("--worker", metavar="WORKER", help="Of this worker only.")] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level", metavar="LEVEL", help="From this level on: info, warning, error, or a number; else all."
        ),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, metavar="N", help="The last N only; else all, with --follow the last 10."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object per line.")] = False,
    home: HomeOption = None,
) -> None:
    """Show what the workers of a system and its supervisor have logged, whether it runs or not.

    Workers send what the program's levels let through when they were started. How much is kept is the topology's
    log_bytes.

    \b
    Exit status:
      0  as asked; also: interrupted, or whoever reads has closed the pipe
      1  the log, or the run directory, cannot be read
      2  wrong usage
      4  unknown system or worker
      5  it belongs to another user
    """
    from actors.log_record import level_number, text_of

    try:
        least = 0 if level is None else level_number(level)
    except ValueError as error:
        _fail(f"--level: {error}", USAGE)

    def show(raw: bytes, line: Line) -> None:
        text = raw.decode("utf-8", "replace") if json else text_of(line, datetime.now().astimezone())
        print(text, flush=follow)

    def wanted(line: Line) -> bool:
        return line.number >= least and (worker is None or line.worker == worker)

    with _failures(system, home):
        follower, workers = _open(system, home)
        with closing(follower):
            known = worker is None or worker in workers
            most = lines if lines is not None else FOLLOWED if follow else None
            shown: deque[tuple[bytes, Line]] = deque(maxlen=most)
            for found in _matching(follower, wanted):
                known = True
                shown.append(found) if most is not None else show(*found)
            if not known:
                _fail(f"{system}: no worker {worker!r}; there are {', '.join(workers)}", UNKNOWN)
            for found in shown:
                show(*found)
            if not follower.exists and not follow:
                print(f"ringleader: {system}: nothing was ever logged here", file=sys.stderr)
            while follow:
                _pause()
                for found in _matching(follower, wanted):
                    show(*found)
        sys.stdout.flush()


def _matching(follower: Follower, wanted: Callable[[Line], bool]) -> Iterator[tuple[bytes, Line]]:
    from actors.log_record import decode_line

    for raw in follower.lines():
        line = decode_line(raw)
        if line is not None and wanted(line):
            yield raw, line


def _pause() -> None:
    import time

    from actors.log_file import INTERVAL

    time.sleep(INTERVAL)


def _open(system: str, home: Path | None) -> tuple[Follower, tuple[str, ...]]:
    """Who reads the log, and the workers of the system."""
    from actors.log_file import Follower
    from actors.rundir import RunDirectory
    from actors.status import locate

    with RunDirectory.open(locate(system, home), create=False) as directory:
        identity = directory.read_identity()
        if identity is None:
            raise FileNotFoundError(f"no system in {directory.path}")
        return Follower(directory.duplicate()), identity.workers


@contextmanager
def _failures(system: str, home: Path | None) -> Iterator[None]:
    """What may go wrong while reading, as exit codes."""
    from actors.rundir import RunDirectoryError
    from actors.status import read_status
    from actors.status_types import Condition

    try:
        yield
    except KeyboardInterrupt:
        pass  # the way to end it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor shall the interpreter complain at its end
    except (RunDirectoryError, OSError) as error:
        found = read_status(system, home=home)
        if found.condition in {Condition.UNKNOWN, Condition.NOT_YOURS, Condition.UNREADABLE}:
            _fail(found.summary, found.condition.exit_code)
        _fail(f"{found.directory}: {error}", UNREADABLE)


def _fail(text: str, code: int) -> NoReturn:
    print(f"ringleader: {text}", file=sys.stderr)
    raise typer.Exit(code)
