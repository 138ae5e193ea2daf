"""What two revisions made of one case, run by run, and what that says. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.bench.measure import Case, Series, quantile


class Row(NamedTuple):
    figure: str
    base: float
    head: float
    unit: str
    times: float  # how many times better head is: the median over the pairs
    lowest: float  # pair
    highest: float
    word: str


@dataclass
class Compared:
    """A case with the pairs of runs it had so far."""

    case: Case
    left_out: str = ""
    failed: bool = False  # on this checkout
    base: list[Series] = field(default_factory=list)
    head: list[Series] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """For each figure. A pair was measured at about the same moment, so the ratios of pairs spread less than the
        figures do; where they lie on both sides of one, nothing is known."""
        if not self.base:
            return
        for figure in self.case.figures:
            pairs = []
            for base, head in zip(self.base, self.head, strict=True):
                a, b = quantile(base[figure.series], figure.quantile), quantile(head[figure.series], figure.quantile)
                if not a or not b:
                    continue  # not known on this side
                pairs.append(a / b if figure.less_is_better else b / a)
            if not pairs:
                continue
            lowest, highest = min(pairs), max(pairs)
            yield Row(
                figure.name,
                figure.of(self.base).value,
                figure.of(self.head).value,
                figure.unit,
                statistics.median(pairs),
                lowest,
                highest,
                word(lowest, highest, len(pairs)),
            )


AGREEING = 5  # pairs; of fewer, agreement means nothing


def word(lowest: float, highest: float, pairs: int) -> str:
    if pairs < AGREEING or lowest <= 1 <= highest:
        return "noise"
    return "better" if lowest > 1 else "WORSE"
