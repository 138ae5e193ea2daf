"""Supervisor events: one record for the log, the observer and machines."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle

import pytest

from actors import events
from actors.exits import ExitStatus

EVERY = [
    events.SystemStarted("trades", 7, ("ingest", "stats")),
    events.SystemReady("trades"),
    events.WorkerStarting("stats", 8, (2, 41)),
    events.WorkerReady("stats", 8, 3),
    events.WorkerDied("stats", 8, 3, "killed by SIGSEGV", (2, 41)),
    events.WorkerDied("stats", 8, 3, "killed by SIGSEGV", (2, 41), "ingest/41"),
    events.WorkerDied("stats", None, 3, "could not be launched", None),
    events.WorkerEnded("stats", 8, "exit code 0"),
    events.WorkerRestarting("stats", 0.25, 2),
    events.WorkerGaveUp("stats", "more than 5 restarts within 10 s"),
    events.WorkerKilled("stats", 8, "it did not stop in time"),
    events.WorkerLeaving("stats", "worker 'ingest' died"),
    events.GroupGaveUp("pipeline", ("ingest", "stats"), "more than 3 restarts within 10 s"),
    events.SystemDraining("trades", "requested"),
    events.SystemDrained("trades"),
    events.SystemStopping("trades", "everything was handled"),
    events.SystemStopped("trades", ExitStatus.GAVE_UP, "more than 5 restarts within 10 s"),
    events.Alarm("ingest", "gap of 2 on the edge to stats"),
]


def test_every_kind_of_event_is_tried_here() -> None:
    assert {type(event).__name__ for event in EVERY} == {kind.__name__ for kind in events.Event.__subclasses__()}


@pytest.mark.parametrize("event", EVERY, ids=lambda event: type(event).__name__)
def test_event_is_one_line_of_text_and_a_record_of_all_its_values(event: events.Event) -> None:
    assert "\n" not in event.text()
    record = json.loads(json.dumps(event.record()))
    assert record.pop("event") == type(event).__name__
    assert record.keys() == {field.name for field in dataclasses.fields(event)}
    for value in record.values():
        assert not isinstance(value, str) or value in event.text()


@pytest.mark.parametrize("event", EVERY, ids=lambda event: type(event).__name__)
def test_event_is_frozen_and_survives_pickling(event: events.Event) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, "other")
    assert pickle.loads(pickle.dumps(event)) == event


def test_death_names_the_message_that_is_blamed() -> None:
    assert events.WorkerDied("stats", 8, 3, "killed by SIGSEGV", (2, 41)).text() == (
        "worker 'stats' died while handling message 41 of peer 2 (process 8, epoch 3): killed by SIGSEGV"
    )
    assert events.WorkerDied("stats", 8, 3, "killed by SIGSEGV", (2, 41), "ingest/41").text() == (
        "worker 'stats' died while handling message ingest/41 (process 8, epoch 3): killed by SIGSEGV"
    )


def test_the_id_of_a_message_names_its_peer() -> None:
    assert events.message_id((1, 41), ["gateway", "ingest"]) == "ingest/41"
    assert events.message_id((2, 41), ["gateway", "ingest"]) == events.message_id(None, []) == ""


def test_same_record_reaches_the_log_and_the_observer(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[events.Event] = []
    event = events.WorkerDied("stats", 8, 3, "killed by SIGSEGV", None)
    with caplog.at_level(logging.INFO, "ringleader"):
        events.publish(event, seen.append)
    assert seen == [event]
    (line,) = caplog.records
    assert (line.name, line.levelno, line.getMessage()) == ("ringleader", logging.WARNING, event.text())
    assert line.__dict__["event"] is event


def test_percent_sign_in_a_reason_is_not_a_format(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ringleader"):
        events.publish(events.Alarm("a", "100 %s full"))
    assert "100 %s full" in caplog.text


def test_failing_observer_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fails(event: events.Event) -> None:
        raise ZeroDivisionError

    events.publish(events.SystemReady("trades"), fails)
    assert "observer failed on SystemReady" in caplog.text
