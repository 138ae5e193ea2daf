"""The commands `ringleader restart`, `drain`, `pause`, `resume` and `stacks`. Parses, asks, prints, exits.

Everything is imported where it is used, as in the other commands.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from actors.cli_options import HomeOption, JsonOption, SystemArgument

if TYPE_CHECKING:
    from actors.control_protocol import WorkerChanged
    from actors.status_types import SystemStatus

OK, FAILED, NOT_RUNNING, UNKNOWN, NOT_YOURS, NOT_IN_TIME, INTERRUPTED = 0, 1, 3, 4, 5, 6, 130

WorkersArgument = Annotated[
    list[str], typer.Argument(metavar="WORKER", help="One worker or several; one after the other, as given.")
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.0, metavar="SECONDS", help="How long to wait for each worker until it is done.")
]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Only ask the supervisor; do not wait for the effect.")]

EXIT_STATUS = """

\b
Exit status:
  0  done, for every worker named
  1  it could not be done
  2  wrong usage
  3  the system is not running
  4  unknown system or worker; nothing was done
  5  it belongs to another user
  6  not in time, or its supervisor does not answer
"""


def register(app: typer.Typer) -> None:
    for command in (restart, drain, pause, resume, stacks):
        app.command(help=inspect.cleandoc(command.__doc__ or "") + EXIT_STATUS)(command)


def restart(
    system: SystemArgument,
    workers: WorkersArgument,
    timeout: TimeoutOption = 60.0,
    no_wait: NoWaitOption = False,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """End workers between two transactions and start them again, and wait until they are up.

    Nothing is lost, and it does not count as a restart against the limit. A worker that has not ended within its
    shutdown limit, as it is in the middle of a message, is killed; that message is handled anew.
    """
    _change("restart", system, workers, timeout, no_wait, json, home)


def drain(
    system: SystemArgument,
    workers: WorkersArgument,
    timeout: TimeoutOption = 60.0,
    no_wait: NoWaitOption = False,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Have workers handle what was sent to them until now, then pause them, and wait for that.

    Their sources stop at once. What is sent to them later waits, until `ringleader resume`.
    """
    _change("drain", system, workers, timeout, no_wait, json, home)


def pause(
    system: SystemArgument,
    workers: WorkersArgument,
    timeout: TimeoutOption = 60.0,
    no_wait: NoWaitOption = False,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Have workers handle nothing and call no source until `ringleader resume`, and wait until they are that far.

    The message at hand is finished first. What is sent to them waits; they go on to beat, so they are not taken for
    hung. A restart leaves them paused; a stop of the system resumes them, as everything is to be handled.
    """
    _change("pause", system, workers, timeout, no_wait, json, home)


def resume(
    system: SystemArgument,
    workers: WorkersArgument,
    timeout: TimeoutOption = 60.0,
    no_wait: NoWaitOption = False,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Have paused workers go on, and wait until they do."""
    _change("resume", system, workers, timeout, no_wait, json, home)


def stacks(
    system: SystemArgument,
    workers: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORKER", help="Whose; else those of all workers and of the supervisor."),
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show where all threads of workers are, as Python stacks; of hung ones too.

    When the supervisor itself does not answer, py-spy is used, if it is installed.
    """
    from actors.control_view import stacks_json, stacks_text
    from actors.looking import look

    status = _running(system, home)
    names = tuple(workers or ())
    _check_names(status, names)
    try:
        found = look(status, names)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print(stacks_json(found) if json else stacks_text(found))
    for one in found:
        if one.problem:
            print(f"ringleader: {one.name}: {one.problem}", file=sys.stderr)
    raise typer.Exit(next((one.code for one in found if one.problem), OK))


# ---------------------------------------------------------------------------------------------------------- steps
def _change(
    command: str, system: str, workers: list[str], timeout: float, no_wait: bool, json: bool, home: Path | None
) -> None:
    from actors.control_protocol import OnWorker, WorkerChanged
    from actors.control_view import changed_text

    status = _running(system, home)
    _check_names(status, workers)
    code, told = OK, []
    for worker in workers:
        arguments = OnWorker(worker, wait=not no_wait, timeout_seconds=timeout)
        try:
            changed = _ask(status, command, arguments, WorkerChanged)
        except _NotDone as problem:
            print(f"ringleader: {problem.text}", file=sys.stderr, flush=True)
            told.append(_problem(worker, problem))
            code = problem.code
            break  # the rest was meant to come after it
        if json:
            told.append(_record(changed))
        else:
            print(changed_text(changed, command), flush=True)
    if json:
        _print_json(told)
    raise typer.Exit(code)


class _NotDone(Exception):
    def __init__(self, error: str, text: str, code: int) -> None:
        super().__init__(error, text, code)
        self.error, self.text, self.code = error, text, code


def _ask(status: SystemStatus, command: str, arguments: Any, answer: type[Any]) -> Any:
    """Raises _NotDone with what to tell, and the exit status."""
    from actors import control_protocol as protocol
    from actors.control_client import CannotAsk, ConnectionLost, NobodyListens, NotAnswering, ask
    from actors.control_protocol import Refused
    from actors.rundir import NotYours

    name = status.name
    try:
        return ask(Path(status.directory), command, arguments, answer)
    except Refused as refused:
        codes = {
            protocol.UNKNOWN_WORKER: UNKNOWN,
            protocol.NOT_IN_TIME: NOT_IN_TIME,
            protocol.OTHER_USER: NOT_YOURS,
            protocol.ENDING: NOT_RUNNING,
        }
        raise _NotDone(refused.error, f"{name}: {refused.text}", codes.get(refused.error, FAILED)) from None
    except NotYours as error:
        raise _NotDone("not-yours", str(error), NOT_YOURS) from None
    except NotAnswering as error:
        raise _NotDone("not-answering", f"{name}: {error.why}{hint(status)}", NOT_IN_TIME) from None
    except (NobodyListens, ConnectionLost) as error:
        raise _NotDone("not-running", f"{name}: {error.why}", NOT_RUNNING) from None
    except CannotAsk as error:
        raise _NotDone("failed", f"{name}: {error.why}", FAILED) from None
    except KeyboardInterrupt:
        raise _NotDone("interrupted", f"{name}: {command} was asked for and goes on", INTERRUPTED) from None


def hint(status: SystemStatus) -> str:
    """What to do about a supervisor that does not answer."""
    from actors.status_types import Health

    supervisor = status.supervisor
    if supervisor is None:
        return ""
    if supervisor.health is Health.STOPPED:
        return f"; `kill -CONT {supervisor.pid}` lets it go on"
    return f"; `ringleader stacks {status.name}` looks into process {supervisor.pid}"


def _running(system: str, home: Path | None) -> SystemStatus:
    """Ends the command if it does not run."""
    from actors.status import read_status
    from actors.status_types import Condition

    status = read_status(system, home=home)
    if status.condition not in {Condition.RUNNING, Condition.STARTING}:
        _fail(f"{status.name}: {status.summary}", status.condition.exit_code)
    return status


def _check_names(status: SystemStatus, names: list[str] | tuple[str, ...]) -> None:
    """Before anything is done, so that nothing is done by halves."""
    from actors.control_commands import unknown_worker

    known = [worker.name for worker in status.workers]
    for name in names:
        if known and name not in known:
            _fail(str(unknown_worker(status.name, name, known)), UNKNOWN)


def _record(changed: WorkerChanged) -> dict[str, object]:
    import msgspec

    record: dict[str, object] = msgspec.to_builtins(changed)
    return record


def _problem(worker: str, problem: _NotDone) -> dict[str, object]:
    return {"worker": worker, "outcome": "not-done", "error": problem.error, "text": problem.text}


def _print_json(told: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())


def _fail(text: str, code: int) -> NoReturn:
    print(f"ringleader: {text}", file=sys.stderr)
    raise typer.Exit(code)
