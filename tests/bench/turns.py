"""One of the two processes of a comparison: measures a case whenever it is asked to, with the packages of its checkout.

    python -m tests.bench.turns DIRECTORY FRACTION TIMEOUT

Standard input and output carry one JSON value a line. It first tells what it is (`Hello`); each line it reads is the
key of a case, which it measures once and answers with `Turn`. At the end of its input it ends.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from tests.bench.measure import Scale


class Hello(msgspec.Struct, frozen=True):
    packages: str  # where they were imported from
    missing: dict[str, str]  # case -> why it cannot be measured, or ""


class Turn(msgspec.Struct, frozen=True):
    series: dict[str, list[float]]
    error: str = ""


def main(directory: str, fraction: str, timeout: str) -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anything else prints is not an answer
    import actors
    from actors.process import stop_forkserver
    from tests.bench import catalogue

    by_key = {case.key: case for case in catalogue.cases(lenient=True)}
    packages = str(Path(actors.__file__).resolve().parents[1])
    _tell(answers, Hello(packages, {key: case.missing for key, case in by_key.items()}))
    scale = Scale(Path(directory), float(fraction), float(timeout))
    try:
        for line in sys.stdin.buffer:
            case = by_key[msgspec.json.decode(line, type=str)]
            try:
                series = {name: list(values) for name, values in case.run(scale).items()}
                _tell(answers, Turn(series))
            except Exception as error:  # the others are still worth measuring
                _tell(answers, Turn({}, f"{type(error).__name__}: {error}"))
    except KeyboardInterrupt:
        pass  # the comparison is over, and what was under way has been undone
    finally:
        stop_forkserver()


def _tell(answers: object, value: msgspec.Struct) -> None:
    answers.write(msgspec.json.encode(value) + b"\n")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(*sys.argv[1:])
