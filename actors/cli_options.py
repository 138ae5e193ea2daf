"""Arguments and options that several commands have, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SystemArgument = Annotated[
    str, typer.Argument(metavar="SYSTEM", help="A name in the home directory, or a run directory.")
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Where run directories are (else RINGLEADER_HOME, or the user's own)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs: stable keys with their units.")]
