"""All cases, in the order in which they are measured. A new module of cases is named here, and has a `cases()`."""

from __future__ import annotations

import importlib
from collections.abc import Collection

from tests.bench.measure import Case, Scale, Series

MODULES = (
    "transports",
    "least",
    "systems",
    "batch_tells",
    "fixed_rows",
    "shapes",
    "stages",
    "payload_forms",
    "payloads",
    "commits",
    "actor_peers",
    "brokers",
    "journals",
    "intersession",
)


UNIMPORTABLE = "cannot be imported"  # group of modules that need what the packages under measurement do not have


def cases(*, lenient: bool = False) -> list[Case]:
    """`lenient`: a module that cannot be imported is one case, which says so, and not an error. An older revision is
    measured by these benchmarks as far as it knows what they need."""
    found = []
    for name in MODULES:
        try:
            found += importlib.import_module(f"tests.bench.{name}").cases()
        except (ImportError, AttributeError, TypeError) as error:
            if not lenient:
                raise
            found.append(Case(UNIMPORTABLE, name, _nothing, missing=f"{type(error).__name__}: {error}"))
    return found


def chosen(only: Collection[str] | None, skip: Collection[str] | None, *, lenient: bool = False) -> list[Case]:
    """Those with one of these texts in their names, and none of those."""
    return [
        case
        for case in cases(lenient=lenient)
        if (not only or any(text in case.key for text in only)) and not any(text in case.key for text in skip or ())
    ]


def _nothing(scale: Scale) -> Series:
    raise NotImplementedError("this case is missing")
