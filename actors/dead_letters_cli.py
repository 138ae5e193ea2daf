"""The command `ringleader dead-letters`. Parses, calls, prints, and turns what happened into exit codes.

Everything is imported where it is used, as in the other commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from actors.cli_options import HomeOption, JsonOption, SystemArgument

if TYPE_CHECKING:
    from actors.dead_letters import DeadLetters, LetterChange, LetterPlace
    from actors.letter_commands import Action

FAILED, USAGE, IN_USE, UNKNOWN, NOT_YOURS = 1, 2, 3, 4, 5

dead_letters = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="As `list` shows them; WORKER:ID where several have it.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them, or all that the other options leave.")]
HandlerOption = Annotated[str | None, typer.Option("--handler", metavar="NAME", help="Only those for this handler.")]
WorkerOption = Annotated[str | None, typer.Option("--worker", metavar="NAME", help="Only those of this worker.")]
TimeoutOption = Annotated[
    float, typer.Option(min=0.0, metavar="SECONDS", help="How long to wait for the answer of a running system.")
]


@dead_letters.command("list")
def list_dead_letters(
    system: SystemArgument,
    json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With the tracebacks.")] = False,
    handler: HandlerOption = None,
    worker: WorkerOption = None,
    home: HomeOption = None,
) -> None:
    """List the messages that a system gave up on, whether it runs or not. Payloads are not shown.

    \b
    Exit status:
      0  all journals were read
      1  a journal could not be read, or the directory
      4  unknown system, worker or handler
      5  it belongs to another user
    """
    from msgspec.structs import replace

    from actors.dead_letters import choose

    with _failures():
        letters = _collect(system, home, tracebacks=verbose)
        _check_names(letters, worker, handler)
        letters = replace(letters, dead_letters=tuple(choose(letters.dead_letters, (), worker, handler)))
        if json:
            _print_json(letters)
        else:
            from actors import status_view

            console = status_view.make_console()
            for part in status_view.letter_parts(letters):
                console.print(part)
    _end(letters)


@dead_letters.command()
def show(
    system: SystemArgument,
    ids: IdsArgument = None,
    everything: AllOption = False,
    handler: HandlerOption = None,
    worker: WorkerOption = None,
    payload: Annotated[bool, typer.Option("--payload", help="With what the messages carry.")] = False,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show everything about dead letters: why, how often it was tried, the traceback. The system may run.

    Payloads are shown only with --payload: as values where they are MessagePack or JSON, else in hexadecimal.

    \b
    Exit status:
      0  as asked
      1  a journal could not be read, or the directory
      2  wrong usage; several workers have a letter of that id
      4  unknown system, worker, handler or letter
      5  it belongs to another user
    """
    from actors.dead_letters import choose
    from actors.dead_letters_view import letter_lines

    _check_choice(ids, everything, handler, worker)
    with _failures():
        letters = _collect(system, home, tracebacks=True, payloads=payload)
        _check_names(letters, worker, handler)
        chosen = choose(letters.dead_letters, ids or (), worker, handler)
        if json:
            _print_json(chosen)
        else:
            print("\n\n".join("\n".join(letter_lines(letter, payload)) for letter in chosen))
    _end(letters)


@dead_letters.command()
def requeue(
    system: SystemArgument,
    ids: IdsArgument = None,
    everything: AllOption = False,
    handler: HandlerOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 30.0,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Have dead letters handled again, exactly once, by the worker that gave them up; its attempts begin anew.

    Where the system does not run, they are handled when it is started. Each goes on as a new message with an id of its
    own; answers to it go nowhere, since whoever asked was told that it was given up.

    \b
    Exit status:
      0  done, for every letter
      1  something could not be read, or a letter stays where it is
      2  wrong usage; several workers have a letter of that id
      3  the system runs, and cannot be asked
      4  unknown system, worker, handler or letter; nothing was done
      5  it belongs to another user
    """
    _change("requeue", system, ids, everything, handler, worker, timeout, json, home)


@dead_letters.command()
def drop(
    system: SystemArgument,
    ids: IdsArgument = None,
    everything: AllOption = False,
    handler: HandlerOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 30.0,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Forget dead letters, for good.

    \b
    Exit status:
      0  done, for every letter
      1  something could not be read, or a letter stays where it is
      2  wrong usage; several workers have a letter of that id
      3  the system runs, and cannot be asked
      4  unknown system, worker, handler or letter; nothing was done
      5  it belongs to another user
    """
    _change("drop", system, ids, everything, handler, worker, timeout, json, home)


def _change(
    action: Action,
    system: str,
    ids: list[str] | None,
    everything: bool,
    handler: str | None,
    worker: str | None,
    timeout: float,
    json: bool,
    home: Path | None,
) -> None:
    from actors.dead_letters import LetterPlace, choose
    from actors.status import locate

    _check_choice(ids, everything, handler, worker)
    with _failures():
        letters = _collect(system, home)
        _check_names(letters, worker, handler)
        if letters.level == "memory":
            places = _places_in_memory(ids, worker)
        else:
            chosen = choose(letters.dead_letters, ids or (), worker, handler)
            places = [LetterPlace(letter.worker, letter.peer, letter.seq) for letter in chosen]
        changes = _changed(locate(system, home), action, places, timeout)
    if json:
        _print_json(changes)
    else:
        for change in changes:
            if change.done:
                print(f"{change.id} of {change.worker}: {change.done}")
        if not changes:
            print(f"{letters.name}: no dead letters")
    for change in changes:
        if change.problem:
            print(f"{change.id} of {change.worker}: {change.problem}", file=sys.stderr)
    _end(letters, failed=any(change.problem for change in changes))


def _changed(path: Path, action: Action, places: Sequence[LetterPlace], timeout: float) -> list[LetterChange]:
    """By its journals where it does not run, else by itself."""
    from actors.letters_running import ask_running
    from actors.letters_stopped import change_stopped
    from actors.rundir import AlreadyRunning

    if not places:
        return []
    try:
        return change_stopped(path, action, places)
    except AlreadyRunning:
        return ask_running(path, action, places, timeout)


def _places_in_memory(ids: list[str] | None, worker: str | None) -> list[LetterPlace]:
    """At level memory only the workers know which there are."""
    from actors.dead_letters import LetterPlace

    places: list[LetterPlace] = []
    for one in ids or ():
        peer, _, seq = one.rpartition("/")
        if worker is None or not peer or not (seq.isascii() and seq.isdigit()):
            places.clear()
            break
        places.append(LetterPlace(worker, peer.removeprefix(f"{worker}:"), int(seq)))
    if not places:
        _fail("level memory keeps no dead letters on disk: name them, as PEER/NUMBER, and their --worker", USAGE)
    return places


def _check_choice(ids: list[str] | None, everything: bool, handler: str | None, worker: str | None) -> None:
    if not ids and not (everything or handler or worker):
        _fail("which ones? Name their ids, or a --handler or a --worker, or say --all", USAGE)
    if ids and everything:
        _fail("either ids or --all", USAGE)


def _check_names(letters: DeadLetters, worker: str | None, handler: str | None) -> None:
    """A name that neither the system nor a letter knows is refused: "no dead letters" would be believed."""
    from actors.dead_letters import known_names

    workers, handlers = known_names(letters)
    for kind, name, known in (("worker", worker, workers), ("handler", handler, handlers)):
        if name is not None and name not in known:
            _fail(f"{letters.name}: no {kind} {name!r}; there are {', '.join(known) or 'none'}", UNKNOWN)


def _collect(system: str, home: Path | None, *, tracebacks: bool = False, payloads: bool = False) -> DeadLetters:
    from actors.dead_letters import collect
    from actors.rundir import RunDirectoryError
    from actors.status import locate, read_status
    from actors.status_types import Condition

    path = locate(system, home)
    try:
        return collect(path, tracebacks=tracebacks, payloads=payloads)
    except (RunDirectoryError, OSError, ValueError) as error:
        found = read_status(system, home=home)
        if found.condition in {Condition.UNKNOWN, Condition.NOT_YOURS, Condition.UNREADABLE}:
            _fail(found.summary, found.condition.exit_code)
        _fail(f"{path}: {error}", FAILED)


def _end(letters: DeadLetters, *, failed: bool = False) -> NoReturn:
    for one in letters.unreadable:
        print(f"journal of worker {one.worker}: {one.problem}", file=sys.stderr)
    raise typer.Exit(FAILED if failed or letters.unreadable else 0)


def _print_json(shown: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())


@contextmanager
def _failures() -> Iterator[None]:
    from actors.control_client import CannotAsk
    from actors.control_protocol import Refused
    from actors.dead_letters import CannotChoose
    from actors.rundir import NotYours, RunDirectoryError

    try:
        yield
    except CannotChoose as error:
        _fail(f"{error}" + (" with --worker" if error.workers else ""), USAGE if error.workers else UNKNOWN)
    except CannotAsk as error:
        _fail(str(error), IN_USE)
    except NotYours as error:
        _fail(str(error), NOT_YOURS)
    except (Refused, RunDirectoryError, OSError) as error:
        _fail(str(error), FAILED)


def _fail(text: str, code: int) -> NoReturn:
    print(f"ringleader: {text}", file=sys.stderr)
    raise typer.Exit(code)
