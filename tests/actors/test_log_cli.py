"""`ringleader logs`: what it shows, where, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from actors.cli import app
from actors.log_file import LogFile
from actors.log_record import Line, encode_line

from .faked import FakeSystem
from .waiting import until

ROOT = Path(__file__).parents[2]
Log = Callable[..., None]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystem]:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path / "home"))
    made = FakeSystem(tmp_path / "home", "trades", shared_memory=False)
    yield made
    made.unlink()


@pytest.fixture
def log(system: FakeSystem) -> Iterator[Log]:
    file = LogFile(os.open(system.path, os.O_RDONLY), 1 << 16)

    def write(message: str, worker: str = "stats", level: str = "INFO", **values: Any) -> None:
        line = Line(
            time="2024-05-01T10:11:12.345Z", level=level, logger="app", worker=worker, message=message, pid=7, **values
        )
        file.write(encode_line(line))

    yield write
    file.close()


def told(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["logs", *arguments])
    return result.exit_code, result.stdout, result.stderr


def messages(*arguments: str) -> list[str]:
    code, out, err = told("trades", "--json", *arguments)
    assert (code, err) == (0, "")
    return [json.loads(line)["message"] for line in out.splitlines()]


def test_logs_are_shown_as_text_for_people(log: Log) -> None:
    log("careful \x1b[2J", level="WARNING", handler="averager", message_id="ingest/3", traceback="Traceback\n  here")
    code, out, err = told("trades")
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert re.fullmatch(r"2024-05-0\d \d\d:\d\d:12\.345 WARNING stats/averager ingest/3: careful \\x1b\[2J", first)
    assert rest == ["    Traceback", "      here"]


def test_logs_as_json_are_the_lines_of_the_file(system: FakeSystem, log: Log) -> None:
    log("one", extra={"n": 1})
    code, out, _ = told("trades", "--json")
    assert (code, out) == (0, (system.path / "log.jsonl").read_text())


def test_logs_are_chosen_by_worker_level_and_number(log: Log) -> None:
    for n, level in enumerate(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "NOTICE"]):
        log(f"s{n}", level=level)
        log(f"i{n}", worker="ingest", level=level)
    assert messages("--worker", "stats", "--level", "warning") == ["s2", "s3", "s4", "s5"]
    assert messages("--lines", "3") == ["i4", "s5", "i5"]
    assert messages("-n", "1", "--level", "40", "--worker", "ingest") == ["i4"]
    assert messages("-n", "0") == []


def test_a_torn_end_is_not_shown(system: FakeSystem, log: Log) -> None:
    log("whole")
    with open(system.path / "log.jsonl", "ab") as file:
        file.write(b'{"time":"2024')
    assert messages() == ["whole"]


def test_a_wrong_level_is_wrong_usage(log: Log) -> None:
    code, out, err = told("trades", "--level", "loud")
    assert (code, out) == (2, "")
    assert "'loud' is no level" in err


def test_an_unknown_system_or_worker_exits_4(log: Log) -> None:
    log("one")
    assert told("trade")[::2] == (4, told("trade")[2])
    assert "did you mean trades?" in told("trade")[2]
    code, out, err = told("trades", "--worker", "nobody")
    assert (code, out) == (4, "")
    assert "no worker 'nobody'; there are ingest, stats" in err


def test_a_worker_that_is_no_longer_there_is_still_shown(log: Log) -> None:
    log("one", worker="gone")
    assert messages("--worker", "gone") == ["one"]


def test_no_log_is_no_error(system: FakeSystem) -> None:
    assert told("trades") == (0, "", "ringleader: trades: nothing was ever logged here\n")


def test_a_log_that_is_no_file_exits_1(system: FakeSystem) -> None:
    (system.path / "log.jsonl").mkdir()
    code, _, err = told("trades")
    assert code == 1
    assert "log.jsonl is no file" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_logs_of_another_user_exit_5(system: FakeSystem, log: Log) -> None:
    os.chown(system.path, 65534, 65534)
    code, _, err = told("trades")
    assert code == 5
    assert "belongs to another user" in err


def test_follow_begins_with_the_last_and_goes_on_over_rotations_until_ctrl_c(system: FakeSystem, log: Log) -> None:
    for n in range(20):
        log(f"before {n}")
    command = [sys.executable, "-m", "actors", "logs", "trades", "-f", "--json", "--worker", "stats"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        try:
            seen = [msgspec.json.decode(following.stdout.readline())["message"] for _ in range(10)]
            assert seen == [f"before {n}" for n in range(10, 20)]
            for n in range(400):  # three files or so
                log(f"after {n}", worker="stats" if n % 2 else "ingest")
                if n % 100 == 99:
                    seen = [msgspec.json.decode(following.stdout.readline())["message"] for _ in range(50)]
                    assert seen == [f"after {one}" for one in range(n - 98, n + 1, 2)]
            assert (system.path / "log.jsonl.1").exists()
        finally:
            following.send_signal(signal.SIGINT)
        assert following.wait(60) == 0
        assert following.stderr.read() == ""


def test_a_reader_that_goes_away_ends_it_quietly(log: Log) -> None:
    for n in range(300):
        log(f"line {n} " + "x" * 100)
    command = f"{sys.executable} -m actors logs trades | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_following_a_system_that_never_logged_waits_for_its_first_line(system: FakeSystem, log: Log) -> None:
    command = [sys.executable, "-m", "actors", "logs", "trades", "--follow"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            log("the first")
            until(lambda: (system.path / "log.jsonl").exists(), "the file")
            assert following.stdout.readline().endswith("INFO stats: the first\n")
        finally:
            following.send_signal(signal.SIGINT)
