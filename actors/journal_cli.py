"""The command `ringleader journal`. Parses, calls, prints, and turns what happened into exit codes.

Everything is imported where it is used, as in the other commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from actors.cli_options import HomeOption, JsonOption

if TYPE_CHECKING:
    from actors.journals import Found

DAMAGED, USAGE, IN_USE = 1, 2, 3
NO_POSITION = 3
ORIGINALS = "originals"  # within a run directory: what stands beside the journals would be taken for one

journal = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PlaceArgument = Annotated[
    str, typer.Argument(metavar="SYSTEM|DIR", help="A name in the home directory, a run directory, or a journal's own.")
]
WorkerArgument = Annotated[str | None, typer.Argument(metavar="WORKER", help="Whose journal; else all of them.")]
OneWorkerArgument = Annotated[
    str | None, typer.Argument(metavar="WORKER", help="Whose journal; needed if there are several.")
]
FromOption = Annotated[
    int, typer.Option("--from", min=0, metavar="POSITION", help="Where to begin: that of a record; 0 is the oldest.")
]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is appended, until Ctrl-C.")]


@journal.command("ls")
def list_journals(
    place: PlaceArgument, worker: WorkerArgument = None, json: JsonOption = False, home: HomeOption = None
) -> None:
    """List the segments of journals, and what is pending for whom. The system may run.

    \b
    Exit status:
      0  all journals were read
      1  a journal is damaged, or cannot be read
      2  wrong usage
      4  unknown system or worker
      5  it belongs to another user
    """
    from actors import journals

    with _failures():
        found = journals.find(place, worker, home)
        listed = [journals.status(found, name) for name in found.journals]
    if json:
        _print_json(listed)
    else:
        from actors import journal_view, status_view

        console = status_view.make_console()
        for index, one in enumerate(listed):
            if index:
                console.print()
            for part in journal_view.status_parts(one):
                console.print(part, soft_wrap=True)
        if not listed:
            print(f"{found.name}: no journals")
    bad = any(one.problem or any(segment.problem for segment in one.segments) for one in listed)
    raise typer.Exit(DAMAGED if bad else 0)


@journal.command()
def show(
    place: PlaceArgument,
    worker: OneWorkerArgument = None,
    from_position: FromOption = 0,
    limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="So many transactions; else all of them.")
    ] = None,
    follow: FollowOption = False,
    home: HomeOption = None,
) -> None:
    """Show the transactions of a journal: what was consumed, what was sent, what has changed. Payloads are not shown.

    Each begins with its position, from which another `show` can go on. The system may run.

    \b
    Exit status:
      0  as asked; also: interrupted, or whoever reads has closed the pipe
      1  the journal is damaged, or cannot be read; what stands before that was shown
      2  wrong usage
      3  there is no record at that position, or no longer
      4  unknown system or worker
      5  it belongs to another user
    """
    from actors.journal_view import record_lines
    from persist.export import ExportedTransaction, export

    with _failures():
        left = -1 if limit is None else limit
        records = export(_only(place, worker, home), from_position, follow=follow)
        for record in records if left else ():
            print("\n".join(record_lines(record)), flush=follow)
            left -= isinstance(record, ExportedTransaction)
            if not left:
                break
        sys.stdout.flush()


@journal.command()
def verify(
    place: PlaceArgument, worker: WorkerArgument = None, json: JsonOption = False, home: HomeOption = None
) -> None:
    """Read journals as a whole, and tell everything that is wrong: frames, and what they mean.

    The system may run; what is being written at this moment is not taken for damage then.

    \b
    Exit status:
      0  nothing is wrong; a torn tail after a crash is not
      1  faults were found, or a journal cannot be read
      2  wrong usage
      4  unknown system or worker
      5  it belongs to another user
    """
    from actors import journals

    with _failures():
        found = journals.find(place, worker, home)
        verdicts = [journals.verify(name, path) for name, path in found.journals.items()]
    if json:
        _print_json(verdicts)
    else:
        from actors.journal_view import verdict_lines

        for verdict in verdicts:
            print("\n".join(verdict_lines(verdict)))
        if not verdicts:
            print(f"{found.name}: no journals")
    raise typer.Exit(0 if all(verdict.ok for verdict in verdicts) else DAMAGED)


@journal.command()
def repair(
    place: PlaceArgument,
    worker: OneWorkerArgument = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Allow to throw away what cannot be kept, after telling what that is.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before that.")] = False,
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", metavar="DIR", help="Where the original is copied to; must not exist.")
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Repair a journal that a system refuses to start with. The system must not run.

    The original is always copied first. Without --discard nothing is lost that was committed: where that cannot be, it
    says what would be lost, and changes nothing. What the other workers have of its messages is found in their
    journals, so that sequence numbers go on where they must.

    \b
    Exit status:
      0  repaired, or there was nothing to repair
      1  refused: something would be lost, or it cannot be repaired; nothing was changed
      2  wrong usage
      3  it is in use; nothing was changed
      4  unknown system or worker
      5  it belongs to another user
    """
    from actors import journals
    from actors.journal_view import repair_lines
    from persist.history_errors import DiscardNeeded
    from persist.repair import repair as repair_journal

    with _failures():
        found, name, path = _one(place, worker, home)
        if found.running:
            _fail(f"{found.name} is running; `ringleader stop {found.name}` ends it", IN_USE)
        known = journals.elsewhere(found, name)
        target = copy_to or _copy_place(found, name)
        try:
            done = repair_journal(path, elsewhere=known, copy_to=target)
        except DiscardNeeded as needed:
            if not discard:
                hint = "with --discard it is repaired all the same, and the original is kept"
                _tell_losses(needed)
                _fail(f"{path}: nothing was changed; {hint}", DAMAGED)
            if not yes:
                _tell_losses(needed)
                _confirm()
            done = repair_journal(path, discard=True, elsewhere=known, copy_to=target)
    if json:
        import msgspec

        fields = {**msgspec.to_builtins(done, builtin_types=(), enc_hook=str), "worker": name}
        print(msgspec.json.format(msgspec.json.encode(fields), indent=2).decode())
    else:
        print("\n".join(repair_lines(done)))


@journal.command()
def export(
    place: PlaceArgument,
    worker: OneWorkerArgument = None,
    from_position: FromOption = 0,
    payloads: Annotated[bool, typer.Option("--payloads", help="With bodies, states and keys, in base64.")] = False,
    follow: FollowOption = False,
    home: HomeOption = None,
) -> None:
    """Write a journal to standard output for programs: one JSON object per line, with stable keys.

    Each segment has a line, with the state that it begins with, and so has each of its transactions. The system may
    run.

    \b
    Exit status:
      0  as asked; also: interrupted, or whoever reads has closed the pipe
      1  the journal is damaged, or cannot be read; what stands before that was written
      2  wrong usage
      3  there is no record at that position, or no longer
      4  unknown system or worker
      5  it belongs to another user
    """
    import msgspec

    from persist.export import export as export_journal

    with _failures():
        encode = msgspec.json.Encoder().encode
        for record in export_journal(_only(place, worker, home), from_position, payloads=payloads, follow=follow):
            print(encode(record).decode(), flush=follow)
        sys.stdout.flush()


def _only(place: str, worker: str | None, home: Path | None) -> Path:
    return _one(place, worker, home)[2]


def _one(place: str, worker: str | None, home: Path | None) -> tuple[Found, str, Path]:
    from actors import journals

    found = journals.find(place, worker, home)
    if len(found.journals) != 1:
        has = f"name one of its workers: {', '.join(found.journals)}" if found.journals else "it has no journals"
        _fail(f"{found.name}: {has}", USAGE if found.journals else 4)
    ((name, path),) = found.journals.items()
    return found, name, path


def _copy_place(found: Found, name: str) -> Path | None:
    if found.run is None:
        return None
    from datetime import UTC, datetime

    return found.run / ORIGINALS / f"{name}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}"


def _tell_losses(needed: Exception) -> None:
    from persist.history_errors import DiscardNeeded

    assert isinstance(needed, DiscardNeeded)
    print(f"{needed.damage}\nrepairing it would lose:", file=sys.stderr)
    for loss in needed.losses:
        print(f"  {loss}", file=sys.stderr)


def _confirm() -> None:
    if not sys.stdin.isatty():
        _fail("nothing was changed: add --yes, as there is nobody to ask", USAGE)
    if not typer.confirm("The original is copied first. Go on?", err=True):
        _fail("nothing was changed", DAMAGED)


def _print_json(listed: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(listed), indent=2).decode())


@contextmanager
def _failures() -> Iterator[None]:
    """What may go wrong while reading, as exit codes."""
    from actors.journals import CannotFind
    from actors.rundir import NotYours, RunDirectoryError
    from persist import JournalLocked, PersistError
    from persist.history_errors import NoSuchPosition, PositionGone

    try:
        yield
    except KeyboardInterrupt:
        pass  # the way to end it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor shall the interpreter complain at its end
    except CannotFind as error:
        _fail(str(error), error.code)
    except NotYours as error:
        _fail(str(error), 5)
    except (PositionGone, NoSuchPosition) as error:
        sys.stdout.flush()
        _fail(f"{error}; `--from 0` begins with the oldest", NO_POSITION)
    except JournalLocked as error:
        _fail(f"{error}; nothing was changed", IN_USE)
    except (PersistError, RunDirectoryError, OSError) as error:
        sys.stdout.flush()
        _fail(str(error), DAMAGED)


def _fail(text: str, code: int) -> NoReturn:
    print(f"ringleader: {text}", file=sys.stderr)
    raise typer.Exit(code)
