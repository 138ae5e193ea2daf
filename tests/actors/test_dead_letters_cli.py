"""`ringleader dead-letters`, run as a user would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from actors import letters_running
from actors.cli import app
from actors.dead_letters import LetterChange
from actors.rundir import RunDirectory
from persist import DeadLetter, Journal, Recovered, Transaction, read, snapshot_of

from .faked import FakeSystem

PAYLOAD = msgspec.msgpack.encode(["secret", 7])
BINARY = b"\xc1secret"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGLEADER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def fake(home: Path) -> Iterator[FakeSystem]:
    """A system `trades` that has ended, with three dead letters of `stats` and one of `ingest` that has the same id."""
    system = FakeSystem(home, "trades", shared_memory=False)
    bury(system, "stats", letter(1, 7), letter(1, 8, body=BINARY), letter(0, 7, handler="stats_second"))
    bury(system, "ingest", letter(1, 7, handler="ingest_first"))
    system.end(0, "")
    yield system
    system.unlink()


def letter(peer: int, seq: int, *, handler: str = "stats_first", body: bytes = PAYLOAD) -> DeadLetter:
    detail = "Traceback (most recent call last):\nValueError: no price\x1b[31m\n"
    time_ns = 1_700_000_000_250_000_000 + seq
    return DeadLetter(peer, seq, 0, handler, "shop.Trade", "ValueError: no price", detail, 3, time_ns, body)


def bury(system: FakeSystem, worker: str, *letters: DeadLetter) -> None:
    def first(recovered: Recovered | None, epoch: int) -> Any:
        return snapshot_of(
            recovered or Recovered(),
            level="process",
            fingerprint="f",
            peers=["gateway", "ingest", "stats"],
            handlers=["h"],
            routes=[("feed", "shop.Trade")],
        )

    with RunDirectory.open(system.path) as directory:
        path = directory.journal(worker)
    journal, _ = Journal.open(path, epoch=0, level="process", make_snapshot=first)
    for one in letters:
        journal.append(Transaction(consumed=[(one.peer, one.seq)], dead=[one]))
    journal.close()


def ringleader(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dead-letters", *(str(argument) for argument in arguments)])


def told(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


def left(system: FakeSystem, worker: str = "stats") -> list[str]:
    return [f"{one.peer}/{one.seq}" for one in read(system.path / "journals" / worker).dead]


# ---------------------------------------------------------------------------------------------------- list, show
def test_list_can_be_narrowed_down(fake: FakeSystem) -> None:
    def ids(*options: str) -> list[tuple[str, str]]:
        found = json.loads(ringleader("list", "trades", "--json", *options).stdout)["dead_letters"]
        return [(one["worker"], one["id"]) for one in found]

    assert sorted(ids()) == [
        ("ingest", "ingest/7"),
        ("stats", "gateway/7"),
        ("stats", "ingest/7"),
        ("stats", "ingest/8"),
    ]
    assert ids("--worker", "ingest") == [("ingest", "ingest/7")]
    assert ids("--handler", "stats_second") == [("stats", "gateway/7")]
    assert ids("--handler", "stats_second", "--worker", "ingest") == []
    assert "gateway/7" in ringleader("list", "trades").stdout


def test_show_tells_everything_but_the_payload(fake: FakeSystem) -> None:
    code, out, err = told(ringleader("show", "trades", "gateway/7"))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "gateway/7 of worker stats",
        "    type       shop.Trade, 9 B",
        "    from       feed, by gateway",
        "    for        stats_second",
        "    given up   2023-11-14T22:13:20.250+00:00, after 3 attempts",
        "    reason     ValueError: no price",
        "      Traceback (most recent call last):",
        "      ValueError: no price?[31m",
    ]
    assert "secret" not in ringleader("show", "trades", "--all", "--json").stdout


def test_show_tells_the_payload_only_if_asked_for(fake: FakeSystem) -> None:
    out = ringleader("show", "trades", "gateway/7", "ingest/8", "--payload").stdout
    assert '    payload    ["secret",7]\n' in out
    assert f"    payload    {BINARY.hex()} (hexadecimal)\n" in out
    listed = json.loads(ringleader("show", "trades", "gateway/7", "ingest/8", "--payload", "--json").stdout)
    assert [one.get("payload") for one in listed] == [["secret", 7], None]
    assert [one.get("payload_hex") for one in listed] == [None, BINARY.hex()]


def test_an_id_that_several_workers_have_needs_its_worker(fake: FakeSystem) -> None:
    code, out, err = told(ringleader("show", "trades", "ingest/7"))
    assert (code, out) == (2, "")
    assert err.startswith("ringleader: 2 workers have a dead letter 'ingest/7': ")
    assert "--worker" in err
    for way in (["ingest/7", "--worker", "ingest"], ["ingest:ingest/7"]):
        code, out, err = told(ringleader("show", "trades", *way))
        assert (code, err, out.splitlines()[0]) == (0, "", "ingest/7 of worker ingest")


@pytest.mark.parametrize("command", ["show", "requeue", "drop"])
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["trades", "ingest/9"], 4, "no dead letter 'ingest/9'"),
        (["trades", "gateway/7", "nonsense"], 4, "no dead letter 'nonsense'"),
        (["trades", "gateway/7", "--worker", "ingest"], 4, "no dead letter 'gateway/7'"),
        (["trades", "ingest/7"], 2, "name one of them with --worker"),
        (["trades"], 2, "--all"),
        (["trades", "ingest/8", "--all"], 2, "either ids or --all"),
        (["trade", "ingest/8"], 4, "trade"),
    ],
)
def test_nothing_is_done_for_what_is_not_clear(
    fake: FakeSystem, command: str, arguments: list[str], code: int, says: str
) -> None:
    result = ringleader(command, *arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert left(fake) == ["ingest/7", "ingest/8", "gateway/7"]


@pytest.mark.parametrize("command", ["list", "show", "requeue", "drop"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--worker", "stat"], "ringleader: trades: no worker 'stat'; there are ingest, stats, former\n"),
        (
            ["--handler", "first"],
            "ringleader: trades: no handler 'first'; there are ingest_first, ingest_second, stats_first, stats_second,"
            " gone, closed\n",
        ),
        (["--worker", "ingest", "--handler", "first"], "ringleader: trades: no handler 'first'; "),
    ],
)
def test_a_worker_or_handler_that_nobody_knows_is_refused(
    fake: FakeSystem, command: str, options: list[str], says: str
) -> None:
    bury(fake, "former", letter(1, 1, handler="gone,closed"))
    code, out, err = told(ringleader(command, "trades", *options))
    assert (code, out) == (4, "")
    assert err.startswith(says)
    assert left(fake) == ["ingest/7", "ingest/8", "gateway/7"]


@pytest.mark.parametrize("options", [["--worker", "former"], ["--handler", "closed"]])
def test_letters_of_what_the_topology_no_longer_has_are_found(fake: FakeSystem, options: list[str]) -> None:
    bury(fake, "former", letter(1, 1, handler="gone,closed"))
    assert told(ringleader("drop", "trades", *options)) == (0, "ingest/1 of former: dropped\n", "")


def test_a_worker_or_handler_without_letters_is_no_mistake(fake: FakeSystem) -> None:
    assert ringleader("drop", "trades", "--all").exit_code == 0
    for options in (["--worker", "stats"], ["--handler", "stats_first"]):
        assert told(ringleader("drop", "trades", *options)) == (0, "trades: no dead letters\n", "")


@pytest.mark.parametrize("command", ["list", "show", "requeue", "drop"])
def test_somebody_elses_system_is_left_alone(fake: FakeSystem, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    result = ringleader(command, "trades", *([] if command == "list" else ["--all"]))
    assert result.exit_code == 5
    assert "belongs to another user" in result.stderr


# ---------------------------------------------------------------------------------------------------- requeue, drop
def test_drop_forgets_the_letters_named(fake: FakeSystem) -> None:
    assert told(ringleader("drop", "trades", "ingest/8", "stats:ingest/7")) == (
        0,
        "ingest/8 of stats: dropped\ningest/7 of stats: dropped\n",
        "",
    )
    assert left(fake) == ["gateway/7"]
    assert left(fake, "ingest") == ["ingest/7"]


def test_drop_all_forgets_all(fake: FakeSystem) -> None:
    assert ringleader("drop", "trades", "--all").exit_code == 0
    assert left(fake) == left(fake, "ingest") == []
    assert told(ringleader("drop", "trades", "--all")) == (0, "trades: no dead letters\n", "")


def test_requeue_leaves_what_its_worker_no_longer_handles(fake: FakeSystem) -> None:
    bury(fake, "stats", letter(1, 9, handler="former"))
    code, out, err = told(ringleader("requeue", "trades", "ingest/8", "ingest/9", "--json"))
    assert (code, err) == (1, "ingest/9 of stats: its worker no longer handles it\n")
    assert json.loads(out) == [
        {"id": "ingest/8", "worker": "stats", "done": "requeued"},
        {"id": "ingest/9", "worker": "stats", "problem": "its worker no longer handles it"},
    ]
    recovered = read(fake.path / "journals" / "stats")
    assert recovered.assigned == {"stats": 1}
    assert left(fake) == ["ingest/7", "gateway/7", "ingest/9"]


def test_a_journal_that_cannot_be_read_is_told_and_the_others_are_dealt_with(fake: FakeSystem) -> None:
    (segment, *_) = sorted((fake.path / "journals" / "ingest").glob("*.journal"))
    segment.write_bytes(b"something else")
    code, out, err = told(ringleader("drop", "trades", "ingest/8"))
    assert (code, out) == (1, "ingest/8 of stats: dropped\n")
    assert err.startswith("journal of worker ingest: ")


def test_a_running_system_is_asked(fake: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(path: Path, *request: Any) -> Any:
        asked.append((path, request))
        return [LetterChange(id="ingest/8", worker="stats", done="requeued")]

    monkeypatch.setattr(letters_running, "ask_running", answer)
    with RunDirectory.open(fake.path) as directory:
        directory.lock()
        result = ringleader("requeue", "trades", "ingest/8", "--timeout", "5")
    assert told(result) == (0, "ingest/8 of stats: requeued\n", "")
    assert asked == [(fake.path, ("requeue", [("stats", "ingest", 8)], 5.0))]
    assert len(left(fake)) == 3, "that is the system's own affair"


def test_a_running_system_that_cannot_be_asked_says_so(fake: FakeSystem) -> None:
    with RunDirectory.open(fake.path) as directory:
        directory.lock()
        code, out, err = told(ringleader("drop", "trades", "ingest/8"))
    assert (code, out) == (3, "")
    assert str(fake.path) in err
    assert len(left(fake)) == 3


def test_at_level_memory_letters_are_named_with_their_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(path: Path, *request: Any) -> Any:
        asked.append(request)
        return []

    monkeypatch.setattr(letters_running, "ask_running", answer)
    fake = FakeSystem(home, "quick", level="memory", shared_memory=False)
    try:
        with RunDirectory.open(fake.path) as directory:
            directory.lock()
            for wrong in (["--all"], ["gateway/1"], ["gateway", "--worker", "stats"]):
                result = ringleader("requeue", "quick", *wrong)
                assert (result.exit_code, "level memory keeps no dead letters on disk" in result.stderr) == (2, True)
            assert ringleader("requeue", "quick", "gateway/1", "--worker", "stats").exit_code == 0
            listed = " ".join(ringleader("list", "quick").stdout.split())
            assert "level memory keeps no dead letters on disk; `ringleader logs` has what became one" in listed
    finally:
        fake.unlink()
    assert asked == [("requeue", [("stats", "gateway", 1)], 30.0)]
