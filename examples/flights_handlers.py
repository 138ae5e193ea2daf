"""The handlers of flights.py. No handler names another: the topology in flights.py says who gets what.

What a row means, and which figures there are, is said in words in flights_direct.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from functools import cache
from string import ascii_uppercase, digits

from flights_messages import (
    AirportFigures,
    CarrierFigures,
    Counted,
    End,
    Flight,
    GetReport,
    Rejected,
    RejectFigures,
    Report,
    Row,
)

from actors import Handler, State, Table, handle

CHUNK = 64 * 1024  # bytes that the reader sends per transaction
COUNT_EVERY = 1000  # rows between two signs of progress


class Position(State):
    row: int = 0
    offset: int = 0
    ended: bool = False


class Reader(Handler):
    """Sends the file row by row. One transaction holds the rows sent and the new position."""

    state: Position

    def __init__(self, path: str, rate: int = 0) -> None:
        self.path = path
        self.rate = rate  # rows per second, 0: as fast as it goes

    def on_start(self) -> None:
        self.file = open(self.path, "rb")  # noqa: SIM115 - open as long as the handler lives
        if self.state.offset == 0:
            self.state.offset = len(self.file.readline())  # the header
        self.file.seek(self.state.offset)

    def on_loop(self) -> float | None:
        if self.state.ended:
            return math.inf
        start = self.state.row
        for line in self.file.readlines(min(CHUNK, self.rate * 10) or CHUNK):
            self.state.row += 1
            self.state.offset += len(line)
            self.send(Row(self.state.row, line.decode(errors="replace").rstrip("\r\n")))
        if self.state.row == start:
            self.state.ended = True
            self.send(End())
        return (self.state.row - start) / self.rate if self.rate else None

    def on_stop(self) -> None:
        self.file.close()


LETTERS = frozenset(ascii_uppercase)
LETTERS_AND_DIGITS = frozenset(ascii_uppercase + digits)
CLOCK = {f"{hour * 100 + minute:0{width}}": hour * 60 + minute
         for hour in range(24) for minute in range(60) for width in (1, 2, 3, 4)} | {"2400": 1440}  # fmt: skip


@cache
def is_date(year: str, month: str, day: str) -> bool:
    try:
        return bool(date(int(year), int(month), int(day)))
    except ValueError:
        return False


def delay_between(scheduled: int, actual: int, delay: str) -> int | None:
    """The delay as a number, None if it is none or does not lead from the scheduled to the actual minute of a day."""
    try:
        number = int(delay)
    except ValueError:
        return None
    return number if (actual - scheduled - number) % 1440 == 0 else None


class Parser(Handler):
    """Makes a Flight of each good row and a Rejected, with the reason, of each bad one."""

    @handle
    def on_row(self, row: Row) -> None:
        fields = row.text.split(",")
        if len(fields) != 19:
            self.send(Rejected(row.number, "not 19 columns", "", "", ""))
            return
        carrier, origin, dest = fields[9], fields[12], fields[13]
        if len(carrier) != 2 or not LETTERS_AND_DIGITS.issuperset(carrier):
            self.send(Rejected(row.number, "no carrier", "", "", ""))
        elif len(origin) != 3 or len(dest) != 3 or not LETTERS.issuperset(origin + dest):
            self.send(Rejected(row.number, "no airport", "", "", ""))
        else:
            delays = self.delays(fields)
            if isinstance(delays, str):
                self.send(Rejected(row.number, delays, carrier, origin, dest))
            else:
                self.send(Flight(carrier, origin, dest, *delays))

    @handle
    def on_end(self, end: End) -> None:
        self.send(end)

    def delays(self, fields: list[str]) -> tuple[int, int] | tuple[None, None] | str:
        """The delays of departure and arrival; of a cancelled flight none; or why there can be none."""
        year, month, day, departed, departure, departure_delay, arrived, arrival, arrival_delay = fields[:9]
        if not is_date(year, month, day):
            return "no date"
        if departed == "NA":
            return (None, None) if arrived == "NA" else "cancelled, yet arrived"
        if departed not in CLOCK or departure not in CLOCK:
            return "no such departure time"
        late = delay_between(CLOCK[departure], CLOCK[departed], departure_delay)
        if late is None:
            return "departure delay contradicts the times"
        if arrived == "NA":
            return "departed, no arrival time"
        if arrived not in CLOCK or arrival not in CLOCK:
            return "no such arrival time"
        if arrival_delay == "NA":
            return "arrived, no arrival delay"
        later = delay_between(CLOCK[arrival], CLOCK[arrived], arrival_delay)
        if later is None:
            return "arrival delay contradicts the times"
        return late, later


def summary(histogram: Mapping[int, int]) -> tuple[int, int, int | None]:
    """How many delays, their sum and their 95th percentile by nearest rank, all exact."""
    count = sum(histogram.values())
    missing = count - count // 20  # the rank: 95 % of the count, rounded up
    for delay in sorted(histogram):
        missing -= histogram[delay]
        if missing <= 0:
            return count, sum(delay * times for delay, times in histogram.items()), delay
    return 0, 0, None


class Counting(Handler):
    """What the two counting handlers share: the number of rows seen, told to the report now and then.

    It is not durable state of its own but follows from it, so each says in on_start how many rows its state holds.
    """

    rows: int

    def count(self) -> None:
        self.rows += 1
        if self.rows % COUNT_EVERY == 0:
            self.send(Counted(type(self).__name__, self.rows, final=False))


class CarrierState(State):
    flights: int = 0
    cancelled: int = 0
    rejected: int = 0
    arrival_delays: dict[int, int] = {}  # delay in minutes -> how many flights


class Carriers(Counting):
    """Delays per carrier. One key of the durable table per carrier, so a commit writes those that it touched."""

    state: Table[str, CarrierState]

    def on_start(self) -> None:
        self.rows = sum(carrier.flights for carrier in self.state.values())

    def carrier(self, name: str) -> CarrierState:
        if name not in self.state:
            self.state[name] = CarrierState()
        return self.state[name]

    @handle
    def on_flight(self, flight: Flight) -> None:
        carrier = self.carrier(flight.carrier)
        carrier.flights += 1
        if flight.arrival_delay is None:
            carrier.cancelled += 1
        else:
            delays = carrier.arrival_delays
            delays[flight.arrival_delay] = delays.get(flight.arrival_delay, 0) + 1
        self.count()

    @handle
    def on_rejected(self, rejected: Rejected) -> None:
        carrier = self.carrier(rejected.carrier)
        carrier.flights += 1
        carrier.rejected += 1
        self.count()

    @handle
    def on_end(self, end: End) -> None:
        for name, carrier in self.state.items():
            figures = summary(carrier.arrival_delays)
            self.send(CarrierFigures(name, carrier.flights, carrier.cancelled, carrier.rejected, *figures))
        self.send(Counted("Carriers", self.rows, final=True))


class AirportState(State):
    departures: int = 0
    arrivals: int = 0
    cancelled: int = 0
    departure_delays: dict[int, int] = {}
    arrival_delays: dict[int, int] = {}


class Airports(Counting):
    """Delays per airport: of departure where a flight starts, of arrival where it goes."""

    state: Table[str, AirportState]

    def on_start(self) -> None:
        self.rows = sum(airport.departures for airport in self.state.values())

    def airport(self, name: str) -> AirportState:
        if name not in self.state:
            self.state[name] = AirportState()
        return self.state[name]

    @handle
    def on_flight(self, flight: Flight) -> None:
        origin, dest = self.airport(flight.origin), self.airport(flight.dest)
        origin.departures += 1
        dest.arrivals += 1
        if flight.departure_delay is None or flight.arrival_delay is None:
            origin.cancelled += 1
            dest.cancelled += 1
        else:
            delays = origin.departure_delays
            delays[flight.departure_delay] = delays.get(flight.departure_delay, 0) + 1
            delays = dest.arrival_delays
            delays[flight.arrival_delay] = delays.get(flight.arrival_delay, 0) + 1
        self.count()

    @handle
    def on_rejected(self, rejected: Rejected) -> None:
        self.airport(rejected.origin).departures += 1
        self.airport(rejected.dest).arrivals += 1
        self.count()

    @handle
    def on_end(self, end: End) -> None:
        for name, airport in self.state.items():
            figures = summary(airport.departure_delays) + summary(airport.arrival_delays)
            self.send(AirportFigures(name, airport.departures, airport.arrivals, airport.cancelled, *figures))
        self.send(Counted("Airports", self.rows, final=True))


class RejectState(State):
    rows: int
    first: int


class Rejects(Handler):
    """Rejected rows by reason, with the number of the first one."""

    state: Table[str, RejectState]

    @handle
    def on_rejected(self, rejected: Rejected) -> None:
        if rejected.reason not in self.state:
            self.state[rejected.reason] = RejectState(rows=0, first=rejected.number)
        self.state[rejected.reason].rows += 1

    @handle
    def on_end(self, end: End) -> None:
        for reason, reject in self.state.items():
            self.send(RejectFigures(reason, reject.rows, reject.first))
        self.send(Counted("Rejects", 0, final=True))


class ReportState(State):
    counted: dict[str, int] = {}
    final: list[str] = []
    carriers: list[CarrierFigures] = []
    airports: list[AirportFigures] = []
    rejects: list[RejectFigures] = []


class Reporter(Handler):
    """Collects the figures and answers GetReport, while the others count and afterwards."""

    state: ReportState

    @handle
    def on_counted(self, counted: Counted) -> None:
        self.state.counted[counted.by] = counted.rows
        if counted.final:
            self.state.final.append(counted.by)

    @handle
    def on_carrier(self, figures: CarrierFigures) -> None:
        self.state.carriers.append(figures)

    @handle
    def on_airport(self, figures: AirportFigures) -> None:
        self.state.airports.append(figures)

    @handle
    def on_reject(self, figures: RejectFigures) -> None:
        self.state.rejects.append(figures)

    @handle
    def on_get_report(self, get: GetReport) -> None:
        state = self.state
        self.reply(
            Report(
                rows=min(state.counted.get("Carriers", 0), state.counted.get("Airports", 0)),
                complete=len(state.final) == 3,
                carriers=tuple(state.carriers),
                airports=tuple(state.airports),
                rejects=tuple(state.rejects),
            )
        )
