"""The messages of flights.py. All fields are immutable, so a run of them is encoded at once when it is committed."""

from __future__ import annotations

from actors import Message


class Row(Message):
    number: int
    text: str


class Flight(Message):
    carrier: str
    origin: str
    dest: str
    departure_delay: int | None  # None: cancelled
    arrival_delay: int | None


class Rejected(Message):
    number: int
    reason: str
    carrier: str  # "" if the row is unreadable, and so the airports
    origin: str
    dest: str


class End(Message):
    """Behind the last row; on every edge it comes last."""


class CarrierFigures(Message):
    carrier: str
    flights: int
    cancelled: int
    rejected: int
    arrival_delays: int
    arrival_delay_sum: int
    arrival_delay_p95: int | None


class AirportFigures(Message):
    airport: str
    departures: int
    arrivals: int
    cancelled: int
    departure_delays: int
    departure_delay_sum: int
    departure_delay_p95: int | None
    arrival_delays: int
    arrival_delay_sum: int
    arrival_delay_p95: int | None


class RejectFigures(Message):
    reason: str
    rows: int
    first: int


class Counted(Message):
    """So many rows have arrived at one of the handlers that count; `final` comes behind all its figures."""

    by: str
    rows: int
    final: bool


class GetReport(Message):
    """Asks the report handler; it answers with a Report."""


class Report(Message):
    rows: int
    complete: bool
    carriers: tuple[CarrierFigures, ...]
    airports: tuple[AirportFigures, ...]
    rejects: tuple[RejectFigures, ...]
