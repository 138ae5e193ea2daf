"""The figures of flights.py computed directly: one process, one loop over the file, the csv module, lists and sorting.

This is the example's oracle. It shares no code with the handlers, and does the same in other ways on purpose: patterns
and strptime instead of sets and tables, every delay kept and sorted for the percentile. What a row means:

- A row is *readable* if it has the 19 columns of the header, a carrier of two characters A-Z or 0-9 and two airports of
  three letters A-Z. An unreadable row is rejected and counted under the name "".
- A row without departure and arrival time is a cancelled flight.
- A row is rejected with the first reason that holds: "not 19 columns", "no carrier", "no airport", "no date",
  "cancelled, yet arrived", "no such departure time", "departure delay contradicts the times",
  "departed, no arrival time", "no such arrival time", "arrived, no arrival delay",
  "arrival delay contradicts the times".
- Every row, cancelled and rejected ones too, counts as a flight of its carrier, as a departure of its origin and as an
  arrival of its destination. Only the others have delays.
- The 95th percentile is the nearest rank: the smallest delay such that at least 95 % of the flights are no later. It is
  a delay that occurred; nothing is interpolated.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from datetime import date, datetime
from functools import cache
from math import ceil
from pathlib import Path

Figures = dict[str, int | None]
UNREADABLE = {"not 19 columns", "no carrier", "no airport"}


def direct(path: Path) -> dict[tuple[str, str], Figures]:
    """Every figure of the file, by what it is about: ("carrier", "UA"), ("airport", "JFK"), ("reject", reason)."""
    carriers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    departures: defaultdict[str, Counter[str]] = defaultdict(Counter)
    arrivals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    carrier_delays: defaultdict[str, list[int]] = defaultdict(list)
    departure_delays: defaultdict[str, list[int]] = defaultdict(list)
    arrival_delays: defaultdict[str, list[int]] = defaultdict(list)
    rejects: defaultdict[str, list[int]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file, quoting=csv.QUOTE_NONE)
        width = len(next(rows))
        for number, row in enumerate(rows, start=1):
            outcome = classify(row) if len(row) == width else "not 19 columns"
            carrier, origin, dest = ("", "", "") if outcome in UNREADABLE else (row[9], row[12], row[13])
            if outcome == "landed":
                carrier_delays[carrier].append(int(row[8]))
                departure_delays[origin].append(int(row[5]))
                arrival_delays[dest].append(int(row[8]))
            elif outcome != "cancelled":
                rejects[outcome].append(number)
                outcome = "rejected"
            carriers[carrier][outcome] += 1
            departures[origin][outcome] += 1
            arrivals[dest][outcome] += 1
    found: dict[tuple[str, str], Figures] = {}
    for name, outcomes in carriers.items():
        found["carrier", name] = {
            "flights": outcomes.total(),
            "cancelled": outcomes["cancelled"],
            "rejected": outcomes["rejected"],
            **summary(carrier_delays[name], "arrival"),
        }
    for name in departures.keys() | arrivals.keys():
        found["airport", name] = {
            "departures": departures[name].total(),
            "arrivals": arrivals[name].total(),
            "cancelled": departures[name]["cancelled"] + arrivals[name]["cancelled"],
            **summary(departure_delays[name], "departure"),
            **summary(arrival_delays[name], "arrival"),
        }
    for reason, numbers in rejects.items():
        found["reject", reason] = {"rows": len(numbers), "first": numbers[0]}
    return found


def summary(delays: list[int], word: str) -> Figures:
    """How many, their sum (the mean is the one divided by the other), and the 95th percentile by nearest rank."""
    ordered = sorted(delays)
    rank = ceil(len(ordered) * 95 / 100)
    return {
        f"{word}_delays": len(ordered),
        f"{word}_delay_sum": sum(ordered),
        f"{word}_delay_p95": ordered[rank - 1] if ordered else None,
    }


def classify(row: list[str]) -> str:
    """ "landed", "cancelled", or the reason why the row is rejected."""
    (year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier) = row[:10]
    if not matches("[A-Z0-9]{2}", carrier):
        return "no carrier"
    if not (matches("[A-Z]{3}", row[12]) and matches("[A-Z]{3}", row[13])):
        return "no airport"
    if not is_date(year, month, day):
        return "no date"
    if dep_time == "NA":
        return "cancelled" if arr_time == "NA" else "cancelled, yet arrived"
    if minutes(dep_time) is None or minutes(sched_dep_time) is None:
        return "no such departure time"
    if not agrees(sched_dep_time, dep_delay, dep_time):
        return "departure delay contradicts the times"
    if arr_time == "NA":
        return "departed, no arrival time"
    if minutes(arr_time) is None or minutes(sched_arr_time) is None:
        return "no such arrival time"
    if arr_delay == "NA":
        return "arrived, no arrival delay"
    if not agrees(sched_arr_time, arr_delay, arr_time):
        return "arrival delay contradicts the times"
    return "landed"


def agrees(scheduled: str, delay: str, actual: str) -> bool:
    """Whether the scheduled time plus the delay is the actual time, on whichever day."""
    start, end = minutes(scheduled), minutes(actual)
    if start is None or end is None:
        return False
    try:
        return (start + int(delay) - end) % 1440 == 0
    except ValueError:
        return False


@cache
def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None


@cache
def is_date(year: str, month: str, day: str) -> bool:
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


@cache
def minutes(clock: str) -> int | None:
    """Minutes since midnight of a time such as 5 (00:05), 517 or 2400; None if there is no such time."""
    if clock == "2400":  # midnight at the end of a day
        return 1440
    if not matches("[0-9]{1,4}", clock):
        return None
    try:
        time = datetime.strptime(clock.zfill(4), "%H%M")
    except ValueError:
        return None
    return time.hour * 60 + time.minute
