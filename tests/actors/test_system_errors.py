"""Errors of a running system carry their values and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from actors import system_errors
from actors.errors import RingleaderError

ERRORS: list[RingleaderError] = [
    system_errors.StartFailed("trades", 3, "gave up"),
    system_errors.RingsDoNotFit(1 << 30, 1 << 26, "shared", 4160, "feed>averager", 1 << 20),
    system_errors.SystemClosed("trades"),
    system_errors.SendTimeout("report", "Trade", 1.5, 4096),
    system_errors.AskTimeout("report", "Question", 2.0),
    system_errors.AskFailed("report", "Question", "ValueError: no"),
    system_errors.BadReply("Answer"),
    system_errors.BadReply("Answer", "Other"),
    system_errors.NothingToReply("report", "Answer", "gateway/3", True),
    system_errors.HandlerFailed("feed", "on_loop", 3),
    system_errors.MessageFailed("report", "feed/7", "Trade", 2, "ValueError: no price"),
    system_errors.CommandTimeout("report", 2.5),
    system_errors.UnknownHandler("reprot", "Trade", (), ("report",)),
    system_errors.UnknownHandler("report", "Trade", ("Question",), ("report",)),
    system_errors.UnknownWorker("statz", ("ingest", "report")),
    system_errors.Overridden("report", "drain", "resume"),
    system_errors.TopologyChanged("workers are gone", {"a -> b": 3}),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_with_their_values(error: RingleaderError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_every_error_is_tried_here() -> None:
    defined = {
        one
        for one in vars(system_errors).values()
        if isinstance(one, type) and issubclass(one, RingleaderError) and one.__module__ == system_errors.__name__
    }
    assert {type(error) for error in ERRORS} == defined


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_name_who_is_at_fault(error: RingleaderError) -> None:
    names = {"trades", "report", "reprot", "feed", "Answer", "a -> b"}
    assert any(name in str(error) for name in names)
