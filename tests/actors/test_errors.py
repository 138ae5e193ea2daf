import inspect
import pickle

import pytest

from actors import errors
from actors.errors import (
    BadMessage,
    BadRecord,
    BadState,
    CodecRefused,
    LayoutMismatch,
    MessageTooLarge,
    MissingNumPy,
    NotRunning,
    Problem,
    RingleaderError,
    SenderError,
    TooManyRows,
    TopologyError,
    UnroutedMessage,
    ViewEscaped,
)

PROBLEM = Problem("unknown-handler", "fed", "route from 'fed': no such handler", "did you mean 'feed'?", "app.py:3")
ERRORS = [
    TopologyError("trades", (PROBLEM, Problem("empty-worker", "w", "worker 'w' hosts no handlers"))),
    NotRunning("Feed", "send"),
    UnroutedMessage("feed", "app.Trade", ("Average", "Quote")),
    BadMessage(3, "app.Trade", "'x'", "Expected `float`, got `str`", "price", "feed"),
    MessageTooLarge("app.Trade", 1000, 200, 5, "feed"),
    CodecRefused("app.Trade", "pickle", "msgpack"),
    MissingNumPy("No module named 'numpy'"),
    TooManyRows("app.Tick", 1000, 200, "feed"),
    ViewEscaped(("app.Tick",), ("feed", "sums")),
    LayoutMismatch("app.Tick", "{price: f8}", "{price: f4}", "in the journal"),
    BadState("Totals", "Expected `int`, got `str`", "averager"),
    BadRecord("shorter than its header", 3),
]


def attributes(error):
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_with_its_values(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert attributes(again) == attributes(error) != {}
    assert str(again) == str(error)


def test_every_error_is_in_this_test():
    concrete = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, RingleaderError) and cls not in {RingleaderError, SenderError}
    }
    assert {type(error) for error in ERRORS} == concrete


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_tells_all_its_names_and_numbers(error):
    told = str(error)
    for name, value in attributes(error).items():
        if isinstance(value, str) and name != "value":
            assert value in told
        if type(value) is int and name != "index":
            assert str(value) in told


def test_an_error_of_a_sender_can_be_blamed_on_its_handler():
    for error in (
        UnroutedMessage("", "app.Trade", ()),
        BadMessage(0, "app.Trade", "'x'", "wrong"),
        MessageTooLarge("app.Trade", 2, 1),
        BadState("Totals", "wrong"),
    ):
        error.blame("feed")
        again = pickle.loads(pickle.dumps(error))
        assert again.handler == error.handler == "feed"
        assert "'feed'" in str(again)


def test_without_a_handler_the_sender_is_to_blame():
    assert str(BadMessage(0, "app.Trade", "", "wrong")).startswith("the sender sent a app.Trade")


def test_a_topology_error_numbers_its_problems_with_hint_and_line():
    assert str(ERRORS[0]) == (
        "topology 'trades' has 2 problems:\n"
        "  1. route from 'fed': no such handler; did you mean 'feed'? [app.py:3]\n"
        "  2. worker 'w' hosts no handlers"
    )
    assert str(TopologyError("t", (PROBLEM,))).startswith("topology 't' has 1 problem:")


def test_the_content_of_a_message_is_not_in_the_text():
    assert "'x'" not in str(ERRORS[3])
    assert ERRORS[3].value == "'x'"  # type: ignore[attr-defined]
