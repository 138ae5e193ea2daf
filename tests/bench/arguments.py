"""Arguments that both programs take. What would measure nothing, or something else than was asked for, is told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tests.bench.measure import Case


def runs(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} runs measure nothing: 1 or more")
    return number


def fraction(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} of the usual counts is nothing to measure: more than 0")
    return number


def no_case(cases: Sequence[Case], only: Sequence[str] | None, skip: Sequence[str] | None) -> str | None:
    """What is wrong where --only and --skip leave nothing."""
    if cases:
        return None
    chosen = " ".join([*(f"--only {text!r}" for text in only or ()), *(f"--skip {text!r}" for text in skip or ())])
    return f"no case is left by {chosen}: `python -m tests.bench --list` names them all"
