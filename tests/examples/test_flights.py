"""flights.py as a user runs it: the answer is that of the direct computation, whatever is killed."""

from __future__ import annotations

import re

from flights_file import unpack

from tests.examples.scripts import run_example
from tests.examples.test_flights_direct import HEADER, row

EQUAL = re.compile(r"equal to the flight: all ([\d,]+) figures are those of a direct computation over the same file")


def test_every_figure_is_that_of_the_direct_computation(tmp_path):
    lines = run_example("flights.py", "--rows", 3000, home=tmp_path)
    assert EQUAL.fullmatch(lines[-1])
    assert re.fullmatch(r"3,000 flights in [\d.]+ s: [\d,]+ flights/s", lines[-2])
    (united,) = [line for line in lines if "United Air Lines" in line]
    assert united.split()[5:] == ["552", "3", "2", "1.63", "39"]


def test_bad_rows_are_rejected_with_their_reason(tmp_path):
    good, odd, late = row(), row(date="2013,13,1"), row(arr="830,819,NA")
    (tmp_path / "flights.csv").write_text("\n".join([HEADER, good, odd, "what is this", late, odd, good]) + "\n")
    lines = run_example("flights.py", "--directory", tmp_path, home=tmp_path)
    assert EQUAL.fullmatch(lines[-1])
    assert {line for line in lines if "rejected:" in line} == {
        "2 rows rejected: no date (first: row 2)",
        "1 rows rejected: not 19 columns (first: row 3)",
        "1 rows rejected: arrived, no arrival delay (first: row 4)",
    }


def test_killed_workers_do_not_change_the_answer(tmp_path):
    arguments = ("--rows", 20_000, "--rate", 10_000, "--kill", 3, "--seed", 117)
    lines = run_example("flights.py", *arguments, home=tmp_path)
    assert EQUAL.fullmatch(lines[-1])
    assert lines[-2] == "killed 3 workers (--seed 117)"
    assert sum(": killed worker " in line for line in lines) == 3


def test_killed_system_is_resumed_and_the_answer_is_the_same(tmp_path):
    arguments = ("--rows", 20_000, "--rate", 10_000, "--kill", 2, "--kill-all", "--seed", 5)
    lines = run_example("flights.py", *arguments, home=tmp_path)
    assert EQUAL.fullmatch(lines[-1])
    assert lines[-2] == "killed 2 workers and the whole system (--seed 5)"
    (killed,) = [line for line in lines if "killed the whole system" in line]
    assert re.match(r"row 1\d,\d{3}: killed the whole system, supervisor \d+ and 5 workers; it resumes from ", killed)


def test_figure_that_differs_is_told_and_is_no_success(tmp_path):
    """The file is changed behind the back of a finished run, whose figures come from its run directory."""
    run_example("flights.py", "--directory", tmp_path, "--rows", 100, home=tmp_path)
    path, _ = unpack(tmp_path, 100)
    path.write_text(path.read_text().replace(",B6,", ",UA,", 1))
    lines = run_example("flights.py", "--directory", tmp_path, home=tmp_path, expect=1)
    assert f"100 flights were counted by an earlier run in {tmp_path}" in "".join(lines)
    assert re.match(r"DIFFERENT: \d+ figures differ from a direct computation", lines[-1])
    flights = dict(
        re.findall(r"^carrier (B6|UA), flights: (\d+ by the handlers, \d+) directly", "\n".join(lines), re.MULTILINE)
    )
    for text in flights.values():
        ours, theirs = map(int, text.split(" by the handlers, "))
        assert abs(ours - theirs) == 1
    assert set(flights) == {"B6", "UA"}


def test_run_over_another_number_of_rows_is_refused(tmp_path):
    unpack(tmp_path, 10)
    (line,) = run_example("flights.py", "--directory", tmp_path, "--rows", 5, home=tmp_path, expect=2)
    assert line.startswith("flights.py: ")
    assert line.endswith("flights.csv has 10 rows of an earlier run, not 5: give another --directory")
