"""The command `ringleader`. Parses, calls, prints, and turns what happened into exit codes; decides nothing else.

Everything is imported where it is used: `status` shall be there at once.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from actors.cli_options import HomeOption, JsonOption, SystemArgument
from actors.control_cli import register
from actors.dead_letters_cli import dead_letters
from actors.journal_cli import journal
from actors.log_cli import logs

if TYPE_CHECKING:
    from actors.identity import Identity
    from actors.status_types import SystemList, SystemStatus

STILL_RUNNING = 6  # of `stop`
INTERRUPTED = 130


class LogFormat(Enum):
    TEXT = "text"
    JSON = "json"


app = typer.Typer(
    name="ringleader",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(dead_letters, name="dead-letters", help="Messages that were given up on.")
app.command()(logs)
app.add_typer(journal, name="journal", help="What is on disk: segments, transactions, damage and its repair.")

register(app)


def main() -> None:
    app(prog_name="ringleader")


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"ringleader {version('ringleader')}")
    except PackageNotFoundError:
        print("ringleader, from a source folder, not installed")
    raise typer.Exit


@app.callback()
def _ringleader(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Actors in worker processes, supervised; every message takes effect exactly once."""


@app.command()
def run(
    target: Annotated[str, typer.Argument(metavar="FILE[:NAME]", help="A Python file, and which topology of it.")],
    home: HomeOption = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="What is logged to stderr, from `warning` on.")
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option("--log-format", help="For people (the default), or for programs.")
    ] = None,
) -> None:
    """Run the topology in a Python file until it ends; the first Ctrl-C drains, the second stops now.

    The file is imported: code under `if __name__ == "__main__"` does not run. NAME is a variable of it, or the name of
    a topology; it is needed only if there are several. What is logged, by the workers too, goes to stderr, unless the
    file configures logging itself; `ringleader logs` shows it later.

    \b
    Exit status:
      0  clean end: everything was handled and every worker ended by itself
      1  something unexpected failed
      2  the command, the file or the topology is wrong; nothing was started
      3  a worker died more often than its restart limit allows
      4  stopped before everything was handled; the rest waits in the journals
      5  the run directory is held by another supervisor
      6  a journal is damaged and was refused; it was left as it is
      7  shared memory or the disk was full at start
    """
    import os

    from actors.exits import ExitStatus
    from actors.loading import CannotLoad, NoTopology, load_topology, split

    if home is not None:
        os.environ["RINGLEADER_HOME"] = str(home.absolute())
    try:
        sys.argv = [str(split(target)[0])]
        topology = load_topology(target)
    except CannotLoad as error:
        print(error.trace, end="", file=sys.stderr)
        _fail(str(error), ExitStatus.USAGE)
    except NoTopology as error:
        _fail(str(error), ExitStatus.USAGE)
    _log_to_stderr(log_level, log_format)
    topology.run()


@app.command()
def status(
    system: Annotated[str | None, typer.Argument(metavar="SYSTEM", help="A name, or a run directory.")] = None,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Read again each second, until Ctrl-C.")] = False,
    home: HomeOption = None,
    hung_after: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Without a heartbeat for so long, a worker hangs.")
    ] = 5.0,
) -> None:
    """Show how a system is: its workers, its messages, its edges.

    Without SYSTEM: the one in the home directory, or a list if there are several. Asks nobody, so it works while
    workers hang or are stopped, and while the supervisor is. Rates and CPU are over the time since the start of the
    system or the process, and with --watch over the time since the last reading.

    \b
    Exit status:
      0  running (also: with hung or stopped workers), or a list of several
      1  there, but it cannot be read
      2  wrong usage
      3  not running: stopped, dead, or its shared memory is not there (yet)
      4  unknown: no such system, or none at all
      5  it belongs to another user
    """
    from actors.rundir import NotYours
    from actors.status import list_status, read_status, readings
    from actors.status_types import to_json

    def read() -> SystemStatus | SystemList:
        if system is not None:
            return read_status(system, home=home, hung_after=hung_after)
        listed = list_status(home, hung_after=hung_after)
        return listed.systems[0] if len(listed.systems) == 1 else listed

    try:
        reading = read()
    except NotYours as error:
        _fail(str(error), 5)
    failed = _exit_code(reading) in {1, 4, 5}
    if json:
        try:
            # One object per line while watching, for whoever reads along.
            for one in readings(read, reading) if watch and not failed else [reading]:
                reading = one
                print(to_json(reading, indent=-1 if watch else 2), flush=True)
        except KeyboardInterrupt:
            pass  # the way to end it
    else:
        from actors import status_view

        console = status_view.make_console(stderr=failed)
        if watch and not failed:
            reading = status_view.watch(readings(read, reading), console)
        else:
            status_view.show(reading, console)
    raise typer.Exit(_exit_code(reading))


@app.command()
def stop(
    system: SystemArgument,
    now: Annotated[bool, typer.Option("--now", help="Do not wait until everything is handled.")] = False,
    timeout: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="How long to wait for the end.")] = 60.0,
    home: HomeOption = None,
) -> None:
    """End a running system, and wait for that: it handles what is under way, then stops.

    With --now it stops at once and leaves what is pending in the journals. Workers that are paused are resumed first.
    Where the supervisor does not answer at its control socket, it gets SIGTERM, and with --now a second one; a program
    that has started the system by itself may end as a whole then.

    \b
    Exit status:
      0  it has ended, as asked
      1  it has ended, but not cleanly, or cannot be read
      3  it was not running
      4  unknown
      5  it belongs to another user
      6  it has not ended in time, and goes on ending
    """
    from actors.exits import ExitStatus
    from actors.status import locate, read_status
    from actors.status_types import Condition, Health
    from actors.status_words import first_line
    from actors.stopping import StillRunning
    from actors.stopping import stop as stop_system

    path = locate(system, home)
    found = read_status(system, home=home)
    identity = _identity(path) if found.condition in {Condition.RUNNING, Condition.STARTING} else None
    if identity is None:
        _fail(f"{found.name}: {found.summary}", found.condition.exit_code)
    if found.supervisor is not None and found.supervisor.health is Health.STOPPED:
        note = f"its supervisor is stopped (SIGSTOP) and hears nothing before `kill -CONT {identity.pid}`"
        print(f"{found.name}: {note}", file=sys.stderr, flush=True)
    try:
        outcome = stop_system(path, identity, now=now, timeout=timeout)
    except KeyboardInterrupt:
        _fail(f"{found.name}: it was asked to end and goes on with that", INTERRUPTED)
    if isinstance(outcome, StillRunning):
        hint = "" if now else "; --now does not wait until everything is handled"
        _fail(
            f"{found.name}: has not ended within {timeout:g} s ({outcome.state or 'no state known'}){hint}",
            STILL_RUNNING,
        )
    ending = outcome.ending
    if ending is None:
        _fail(f"{found.name}: its process {identity.pid} has ended without a record of how", 1)
    text = f"{found.name}: stopped with status {ending.status}: {first_line(ending.reason)}"
    if ending.status == ExitStatus.OK or (now and ending.status == ExitStatus.NOT_DRAINED):
        print(text)
    else:
        _fail(text, 1)


def _log_to_stderr(level: str | None, format_: LogFormat | None) -> None:
    from actors.log_format import configure
    from actors.log_record import level_number

    try:
        number = level_number(level or "warning")
    except ValueError as error:
        _fail(f"--log-level: {error}", 2)
    if not configure(number, format_ is LogFormat.JSON) and (level or format_):
        print("ringleader: --log-level and --log-format change nothing: the file configures logging", file=sys.stderr)


def _identity(path: Path) -> Identity | None:
    from actors.rundir import RunDirectory

    with RunDirectory.open(path, create=False) as directory:
        return directory.read_identity()


def _exit_code(reading: SystemStatus | SystemList) -> int:
    from actors.status_types import Condition, SystemList

    if isinstance(reading, SystemList):
        return 0 if reading.systems else Condition.UNKNOWN.exit_code
    return reading.condition.exit_code


def _fail(text: str, code: int) -> NoReturn:
    print(f"ringleader: {text}", file=sys.stderr)
    raise typer.Exit(code)
