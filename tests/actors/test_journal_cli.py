"""`ringleader journal`, run as a user would: on journals by themselves, and on those of a system."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from actors.cli import app
from actors.identity import stale_prefix
from actors.journals import writer
from actors.rundir import RunDirectory
from bus.segment import remove_stale
from persist import DamagedJournal, Transaction, check, read
from persist.format import SEGMENT_HEADER
from persist.history import Record, replay
from tests.persist.building import in_segments, open_journal, path_of, snapshots, transaction

from .faked import FakeSystem
from .waiting import until

ROOT = Path(__file__).parents[2]
COMMANDS = ("ls", "show", "verify", "repair", "export")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A journal that belongs to no system: 9 transactions in 3 segments."""
    in_segments(tmp_path / "alone", 3, 3, 3)
    return tmp_path / "alone"


@pytest.fixture
def fake(home: Path) -> Iterator[FakeSystem]:
    """A system `trades` that has ended, with a journal of `ingest`, and one of a worker that is gone."""
    system = FakeSystem(home, "trades")
    with RunDirectory.open(system.path) as directory:
        for worker in ("gone", "ingest"):
            in_segments(directory.journal(worker), 2, 3)
    system.end(0, "")
    yield system
    system.unlink()


def ringleader(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, ["journal", *(str(argument) for argument in arguments)], **options)


def told(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "actors", "journal", *(str(argument) for argument in arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x41
    path.write_bytes(data)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def damaged(journal: Path) -> None:
    """In the second transaction of the second segment."""
    _, second, *_ = [record for record in replay(journal) if record.segment == 2]
    damage(journal, second)


def damage(journal: Path, record: Record) -> None:
    path = path_of(journal, record.segment)
    first_position = int.from_bytes(path.read_bytes()[24:32], "little")
    flip(path, record.position - first_position + SEGMENT_HEADER + 20)


# ------------------------------------------------------------------------------------------------------- ls
def test_ls_tells_segments_and_what_is_pending(alone: Path) -> None:
    code, out, err = told(ringleader("ls", alone))
    assert (code, err) == (0, "")
    assert out.startswith("alone: 3 segments, 12 frames, ")
    assert re.search(r"^2 +\d+ +\d+ +0 +4 +1 +20\d\d-", out, re.MULTILINE)
    assert re.search(r"^left +9 +0 +9$", out, re.MULTILINE)
    (listed,) = json.loads(ringleader("ls", alone, "--json").stdout)
    assert [segment["number"] for segment in listed["segments"]] == [1, 2, 3]
    assert listed["peers"] == [{"peer": "left", "assigned": 9, "received": 0, "pending_messages": 9}]
    assert listed["end_position"] == read(alone).position


def test_ls_of_a_damaged_journal_tells_which_segment(alone: Path) -> None:
    damaged(alone)
    code, out, _ = told(ringleader("ls", alone))
    assert code == 1
    assert re.search(r"! segment 2: .*damaged at offset", out)
    assert re.search(r"^3 +\d+", out, re.MULTILINE), "the others are shown all the same"


def test_ls_of_a_system_lists_every_worker_and_knows_what_peers_received(fake: FakeSystem) -> None:
    with RunDirectory.open(fake.path) as directory:
        journal, _ = open_journal(directory.journal("stats"))
        journal.close()
    code, out, _ = told(ringleader("ls", "trades"))
    assert code == 0
    assert re.findall(r"^(\w+): \d+ segment", out, re.MULTILINE) == ["ingest", "stats", "gone"]
    assert told(ringleader("ls", "trades", "gone"))[1].startswith("gone: 2 segments")
    listed = json.loads(ringleader("ls", fake.path, "--json").stdout)
    assert [one["worker"] for one in listed] == ["ingest", "stats", "gone"]
    path = fake.path / "journals" / "ingest"
    assert json.loads(ringleader("ls", path, "--json").stdout)[0]["worker"] == "ingest"


def test_what_is_not_there_is_named(fake: FakeSystem, home: Path, tmp_path: Path) -> None:
    code, out, err = told(ringleader("ls", "trade"))
    assert (code, out) == (4, "")
    assert "unknown system 'trade'" in err
    assert "did you mean trades?" in err
    code, _, err = told(ringleader("show", "trades", "nosuch"))
    assert code == 4
    assert err == "ringleader: trades has no journal of a worker 'nosuch'; it has those of ingest, gone\n"
    code, _, err = told(ringleader("show", "trades"))
    assert (code, err) == (2, "ringleader: trades: name one of its workers: ingest, gone\n")
    (tmp_path / "empty").mkdir()
    assert ringleader("verify", tmp_path / "empty").exit_code == 4
    assert ringleader("ls", "--nosuch").exit_code == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_journals_are_not_looked_at(fake: FakeSystem) -> None:
    os.chown(fake.path, 65534, 65534)
    for name in COMMANDS:
        assert ringleader(name, "trades", "ingest").exit_code == 5
    os.chown(fake.path, 0, 0)


# ------------------------------------------------------------------------------------------------------- show
def test_show_tells_each_transaction_without_its_payload(alone: Path) -> None:
    code, out, err = told(ringleader("show", alone))
    assert (code, err) == (0, "")
    positions = [record.position for record in replay(alone)]
    assert [int(found) for found in re.findall(r"^(\d+): ", out, re.MULTILINE)] == positions
    assert "    consumed   left up to 9\n" in out
    assert "    sent       counter Tick to left 9 (6 B)\n" in out
    assert "body" not in out
    code, some, _ = told(ringleader("show", alone, "--from", positions[4], "--limit", "2"))
    assert (code, re.findall(r"^(\d+): ", some, re.MULTILINE)) == (0, [str(position) for position in positions[4:6]])
    assert told(ringleader("show", alone, "--limit", "0")) == (0, "", "")


def test_show_says_where_a_wrong_position_lies(alone: Path) -> None:
    positions = [record.position for record in replay(alone)]
    code, out, err = told(ringleader("show", alone, "--from", positions[4] + 8))
    assert (code, out) == (3, "")
    assert f"no record at position {positions[4] + 8}: it lies inside of the record at {positions[4]}" in err
    path_of(alone, 1).unlink()
    code, out, err = told(ringleader("show", alone, "--from", positions[0]))
    assert code == 3
    assert f"no longer has position {positions[0]}: what is left begins at " in err
    assert "--from 0" in err


def test_show_of_a_damaged_journal_shows_what_stands_before_it(alone: Path) -> None:
    damaged(alone)
    code, out, err = told(ringleader("show", alone))
    assert code == 1
    assert "left up to 3\n" in out
    assert "left up to 9\n" not in out
    assert "damaged at offset" in err


def test_names_in_a_journal_never_control_the_terminal(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "j", make_snapshot=snapshots(peers=("a\x1b[2J", "right")))
    journal.append(transaction(1))
    journal.close()
    for name in ("ls", "show", "verify"):
        assert "\x1b" not in ringleader(name, tmp_path / "j").stdout


# ------------------------------------------------------------------------------------------------------- verify
def test_verify_reads_all_and_tells_all(alone: Path) -> None:
    code, out, err = told(ringleader("verify", alone))
    assert (code, err) == (0, "")
    assert re.match(r"alone: ok, 3 segments, 12 frames, [\d.]+ KiB\n$", out)
    records = list(replay(alone))
    for index in (1, 4):
        damage(alone, records[index])
    code, out, _ = told(ringleader("verify", alone))
    assert code == 1
    assert out.startswith("alone: 2 faults, 3 segments")
    assert out.count("damaged at offset") == 2
    (verdict,) = json.loads(ringleader("verify", alone, "--json").stdout)
    assert (verdict["ok"], len(verdict["faults"]), verdict["segments"]) == (False, 2, 3)


def test_verify_does_not_mind_a_torn_tail(alone: Path) -> None:
    path = path_of(alone, 3)
    path.write_bytes(path.read_bytes()[:-20])
    code, out, _ = told(ringleader("verify", alone))
    assert code == 0
    assert "a crash left a torn tail, which the next start cuts off: " in out


WRITER = """
import sys, time
from tests.persist.building import after, open_journal, transaction
journal, _ = open_journal(sys.argv[1])
number = 0
while True:
    number += 1
    journal.append(transaction(number))
    if number % 100 == 0:
        journal.rotate(after(number))
        journal.trim({0: number - int(sys.argv[2])})
    time.sleep(0.0002)
    if number == 300:
        print("up", flush=True)
"""


@contextmanager
def written(path: Path, kept: int) -> Iterator[int]:
    """A journal that a process appends to and rotates all the time, and trims so that so many transactions are kept."""
    command = [sys.executable, "-c", WRITER, str(path), str(kept)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"up\n"
            yield writer.pid
        finally:
            writer.kill()


def test_a_journal_is_looked_at_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "live"
    with written(path, kept=1000) as pid:
        for _ in range(3):
            code, out, err = told(ringleader("verify", path))
            assert (code, err) == (0, ""), out
            assert f"ok, {out.split(', ')[1]}" in out
            assert f"in use by process {pid}: up to its end at this moment" in out
        code, out, _ = told(ringleader("ls", path))
        assert code == 0, out
        code, _, err = told(ringleader("repair", path))
        assert code == 3
        assert f"in use by process {pid}; nothing was changed" in err


def test_verify_finds_damage_in_a_journal_that_is_in_use(alone: Path) -> None:
    damaged(alone)
    holder = "import sys, time\nfrom persist import DirectoryLock\nfrom persist.files import Directory\n"
    holder += "d = Directory(sys.argv[1])\nl = DirectoryLock(d.path, d.descriptor)\nprint('up', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(alone)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert ringleader("verify", alone).exit_code == 1
        process.kill()


# ------------------------------------------------------------------------------------------------------- export
def test_export_writes_an_object_per_line(alone: Path) -> None:
    done = run("export", alone, "--payloads")
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["kind"] for record in records].count("segment") == 3
    transactions = [record for record in records if record["kind"] == "transaction"]
    assert [record["position"] for record in transactions] == [record.position for record in replay(alone)]
    assert transactions[0]["sends"][0]["body_base64"]
    assert "body_base64" not in ringleader("export", alone).stdout


def test_export_and_show_follow_until_they_are_interrupted(tmp_path: Path) -> None:
    """The writer may be much quicker than who prints, so all is kept: nothing is gone before it was shown."""
    with written(tmp_path / "live", kept=10**9):
        for name in ("export", "show"):
            with subprocess.Popen(
                command(name, tmp_path / "live", "--follow"),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as follower:
                assert follower.stdout is not None
                assert follower.stderr is not None
                for _ in range(500):
                    assert follower.stdout.readline()
                follower.send_signal(signal.SIGINT)
                follower.stdout.read()
                assert (follower.wait(30), follower.stderr.read()) == (0, "")


def test_whoever_closes_the_pipe_hears_no_complaint(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "long")
    for number in range(1, 3000):
        journal.append(transaction(number))
    journal.close()
    for name in ("export", "show"):
        with subprocess.Popen(
            command(name, tmp_path / "long"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.readline()
            child.stdout.close()
            assert child.wait(30) == 0
            assert child.stderr.read() == b""


# ------------------------------------------------------------------------------------------------------- repair
def test_repair_says_what_would_be_lost_and_changes_nothing(alone: Path) -> None:
    damaged(alone)
    before = files(alone)
    for arguments in (["repair", alone], ["repair", alone, "--discard"]):
        done = run(*arguments)
        assert done.returncode == (2 if "--discard" in arguments else 1)
        assert done.stdout == ""
        assert "damaged at offset" in done.stderr
        assert re.search(r"  \d transactions of segment 3\n", done.stderr)
        assert "must send them again" in done.stderr
        assert "to left, if not received by it" in done.stderr
        assert "nothing was changed" in done.stderr
        assert files(alone) == before
        assert [path.name for path in alone.parent.iterdir() if path.name.startswith("alone")] == ["alone"]


def test_repair_with_discard_keeps_the_original(alone: Path, tmp_path: Path) -> None:
    damaged(alone)
    before = files(alone)
    done = run("repair", alone, "--discard", "--yes", "--copy-to", tmp_path / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"original  {tmp_path / 'copy'}\n" in done.stdout
    assert files(tmp_path / "copy") == before
    assert check(alone).ok
    assert told(ringleader("repair", alone)) == (0, f"{alone}: nothing to repair\n", "")
    again = json.loads(ringleader("repair", alone, "--json").stdout)
    assert (again["action"], again["worker"], again["damage"]) == ("nothing", "alone", [])


def test_repair_of_a_systems_journal_takes_what_the_others_have_into_account(fake: FakeSystem) -> None:
    """The copy goes where it is not taken for a journal."""
    with RunDirectory.open(fake.path) as directory:
        journal, _ = open_journal(directory.journal("left"), make_snapshot=snapshots(peers=("ingest",)))
        journal.append(Transaction(consumed=[(0, 4)]))
        journal.close()
    ingest = fake.path / "journals" / "ingest"
    damaged(ingest)
    code, out, err = told(ringleader("repair", "trades", "ingest", "--discard", "--yes"))
    assert (code, err) == (0, ""), out
    assert RunDirectory.open(fake.path).journals() == ["gone", "ingest", "left"]
    (copy,) = (fake.path / "originals").iterdir()
    assert copy.name.startswith("ingest-")
    assert check(ingest).ok
    assert read(ingest).assigned["left"] == 4, "as many as `left` says it has"
    assert ringleader("verify", "trades").exit_code == 0


def test_repair_of_a_running_system_is_refused(home: Path) -> None:
    system = FakeSystem(home, "weather")
    try:
        with RunDirectory.open(system.path) as directory:
            in_segments(directory.journal("ingest"), 2)
        code, _, err = told(ringleader("repair", "weather", "ingest"))
        assert (code, err) == (3, "ringleader: weather is running; `ringleader stop weather` ends it\n")
    finally:
        system.unlink()


def test_repair_refuses_newer_and_hopeless_journals_untouched(tmp_path: Path) -> None:
    path = tmp_path / "one"
    in_segments(path, 3)
    flip(path_of(path, 1), 60)
    before = files(path)
    code, _, err = told(ringleader("repair", path, "--discard", "--yes"))
    assert code == 1
    assert "no snapshot is left to begin with" in err
    assert files(path) == before


# ------------------------------------------------------------------------------------------------------- a system
SYSTEM = """
    from pathlib import Path
    from actors import Handler, Message, State, Topology, handle

    HERE = Path(__file__).parent

    class Job(Message):
        n: int

    class Position(State):
        n: int = 0

    class Source(Handler):
        state: Position
        def on_loop(self) -> float:
            if self.state.n >= int((HERE / "jobs").read_text()):
                return 0.01
            self.state.n += 1
            self.send(Job(self.state.n))
            return 0.001

    class Sink(Handler):
        state: Position
        @handle
        def on_job(self, job: Job) -> None:
            self.state.n += 1

    app = Topology("live", drain_timeout=60.0)
    app.worker("feed", source=Source)
    app.worker("desk", sink=Sink)
    app.route("source", Job, to="sink")
"""


class Live:
    """The system above, run by `ringleader run`."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.path = folder, home / "live"
        (folder / "live.py").write_text(textwrap.dedent(SYSTEM))

    @contextmanager
    def running(self, jobs: int) -> Iterator[subprocess.Popen[str]]:
        (self.folder / "jobs").write_text(str(jobs))
        arguments = [sys.executable, "-m", "actors", "run", str(self.folder / "live.py")]
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as system:
            try:
                yield system
            finally:
                system.kill()

    def consumed(self) -> int:
        """How many of the source's messages the sink has durably handled."""
        desk = self.path / "journals" / "desk"
        try:
            return read(desk).watermarks.get("feed", 0)
        except (FileNotFoundError, DamagedJournal):  # not there yet; or read while it was written
            return 0

    @property
    def feed(self) -> Path:
        return self.path / "journals" / "feed"


@pytest.fixture
def live(tmp_path: Path, home: Path) -> Iterator[Live]:
    made = Live(tmp_path, home)
    yield made
    with RunDirectory.open(made.path) as directory:
        identity = directory.read_identity()
    assert identity is not None
    remove_stale(stale_prefix(identity))


def test_a_system_whose_journal_was_repaired_goes_on_where_its_peers_are(live: Live) -> None:
    with live.running(30) as system:
        until(lambda: live.consumed() == 30, "30 jobs", 60)
        assert ringleader("verify", "live").exit_code == 0
        assert ringleader("repair", "live", "feed").exit_code == 3
        sent = [json.loads(line) for line in ringleader("export", "live", "feed").stdout.splitlines()]
        assert sum(run["count"] for record in sent for run in record.get("sends", ())) == 30
        listed = {one["worker"]: one for one in json.loads(ringleader("ls", "live", "--json").stdout)}
        assert listed["feed"]["peers"] == [{"peer": "desk", "assigned": 30, "received": 30, "pending_messages": 0}]
        assert listed["feed"]["in_use_by"]
        system.kill()  # and its workers with it
        until(lambda: writer(live.feed) is None, "the worker to be dead", 60)
    half = next(record for record in replay(live.feed) if record.sends and record.sends[0].edges["desk"] > 10)
    damage(live.feed, half)
    with live.running(35) as system:
        assert system.wait(60) == 6, "the system refuses it"
        assert "damaged at offset" in system.communicate()[1]
    code, _, err = told(ringleader("verify", "live", "feed"))
    assert code == 1
    assert ringleader("repair", "live", "feed").exit_code == 1
    code, out, err = told(ringleader("repair", "live", "feed", "--discard", "--yes"))
    assert (code, err) == (0, ""), out
    kept = half.sends[0].edges["desk"] - 1
    assert read(live.feed).assigned["desk"] == 30, "behind what the receiver has"
    with live.running(35) as system:
        until(lambda: live.consumed() == 30 + 35 - kept, "the source to go on from where its state is", 60)
        system.send_signal(signal.SIGTERM)
        assert system.wait(60) == 0, system.communicate()
    assert ringleader("verify", "live").exit_code == 0


# ------------------------------------------------------------------------------------------------------- all commands
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_documents_its_exit_status(name: str) -> None:
    code, out, _ = told(ringleader(name, "--help"))
    assert code == 0
    codes = re.findall(r"^ +(\d)  \w", out.partition("Exit status:")[2], re.MULTILINE)
    assert codes[0] == "0"
    assert len(codes) >= 5
    assert len(set(codes)) == len(codes)
