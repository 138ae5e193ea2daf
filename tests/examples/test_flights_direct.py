"""The direct computation against what is known of the file, and against small files worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flights_direct import Figures, direct
from flights_file import unpack

HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,"
    "carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)
KNOWN_FLIGHTS = {
    "UA": 58665, "B6": 54635, "EV": 54173, "DL": 48110, "AA": 32729, "MQ": 26397, "US": 20536, "9E": 18460,
    "WN": 12275, "VX": 5162, "FL": 3260, "AS": 714, "F9": 685, "YV": 601, "HA": 342, "OO": 32,
}  # fmt: skip
KNOWN_DEPARTURES = {"EWR": 120835, "JFK": 111279, "LGA": 104662}


def row(
    date: str = "2013,1,1", dep: str = "517,515,2", arr: str = "830,819,11", carrier: str = "UA", route: str = "EWR,IAH"
) -> str:
    return f"{date},{dep},{arr},{carrier},1545,N14228,{route},227,1400,5,15,2013-01-01T10:00:00Z"


@pytest.fixture
def figures(tmp_path: Path) -> Callable[..., dict[tuple[str, str], Figures]]:
    def compute(*rows: str) -> dict[tuple[str, str], Figures]:
        path = tmp_path / "flights.csv"
        path.write_text("\n".join([HEADER, *rows]) + "\n")
        return direct(path)

    return compute


def test_whole_file_has_the_known_figures(tmp_path):
    path, rows = unpack(tmp_path, None)
    found = direct(path)

    def of(about: str, figure: str) -> dict[str, int | None]:
        return {name: values[figure] for (kind, name), values in found.items() if kind == about}

    assert rows == 336_776
    assert of("carrier", "flights") == KNOWN_FLIGHTS
    assert sum(KNOWN_FLIGHTS.values()) == rows
    assert {name: count for name, count in of("airport", "departures").items() if count} == KNOWN_DEPARTURES
    assert sum(count or 0 for count in of("airport", "arrivals").values()) == rows
    assert sum(count or 0 for count in of("carrier", "cancelled").values()) == 8_255
    assert of("reject", "rows") == {"departed, no arrival time": 458, "arrived, no arrival delay": 717}
    assert sum(count or 0 for count in of("carrier", "arrival_delays").values()) == 327_346
    assert sum(total or 0 for total in of("carrier", "arrival_delay_sum").values()) == 2_257_174
    assert found["carrier", "HA"]["arrival_delay_sum"] == -2_365


def test_percentile_is_the_smallest_delay_that_95_percent_do_not_exceed(figures):
    late = [row(dep=f"{600 + n},600,{n}", arr=f"{800 + n},800,{n}") for n in range(1, 41)]
    assert figures(*late)["carrier", "UA"]["arrival_delay_p95"] == 38
    assert figures(*late, row(dep="600,600,0", arr="800,800,0"))["carrier", "UA"]["arrival_delay_p95"] == 38
    assert figures(late[6])["carrier", "UA"]["arrival_delay_p95"] == 7


def test_cancelled_flight_counts_but_has_no_delay(figures):
    found = figures(row(dep="NA,515,NA", arr="NA,819,NA"))
    expected = {"flights": 1, "cancelled": 1, "rejected": 0}
    assert found["carrier", "UA"] == expected | {
        "arrival_delays": 0, "arrival_delay_sum": 0, "arrival_delay_p95": None
    }  # fmt: skip
    assert (found["airport", "EWR"]["cancelled"], found["airport", "IAH"]["cancelled"]) == (1, 1)


def test_delay_over_midnight_agrees_with_the_times(figures):
    found = figures(row(dep="15,2355,20", arr="2400,130,-90"))
    assert found["airport", "EWR"]["departure_delay_sum"] == 20
    assert found["airport", "IAH"]["arrival_delay_sum"] == -90


REJECTED = [
    ("not 19 columns", row() + ",more"),
    ("not 19 columns", ""),
    ("no carrier", row(carrier="ua")),
    ("no carrier", row(carrier="UAL")),
    ("no airport", row(route="EWR,IA")),
    ("no date", row(date="2013,2,29")),
    ("no date", row(date="2013,x,1")),
    ("cancelled, yet arrived", row(dep="NA,515,NA")),
    ("no such departure time", row(dep="560,515,45")),
    ("no such departure time", row(dep=",515,2")),
    ("departure delay contradicts the times", row(dep="517,515,3")),
    ("departure delay contradicts the times", row(dep="517,515,NA")),
    ("departed, no arrival time", row(arr="NA,819,NA")),
    ("no such arrival time", row(arr="830,2500,11")),
    ("arrived, no arrival delay", row(arr="830,819,NA")),
    ("arrival delay contradicts the times", row(arr="830,819,12")),
    ("arrival delay contradicts the times", row(arr="830,819,eleven")),
]


@pytest.mark.parametrize(("reason", "bad"), REJECTED)
def test_bad_row_is_rejected_with_its_reason(figures, reason, bad):
    found = figures(row(), bad, row())
    assert found["reject", reason] == {"rows": 1, "first": 2}
    name = "" if reason in {"not 19 columns", "no carrier", "no airport"} else "UA"
    assert found["carrier", name]["rejected"] == 1
    assert found["carrier", "UA"]["arrival_delays"] == 2
