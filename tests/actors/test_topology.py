import os
import threading
from typing import Any

import pytest

from actors.errors import TopologyError
from actors.handler import Handler, handle
from actors.message import Message
from actors.ring_sizes import largest_message
from actors.topology import Topology
from tests.actors.declared import Average, Averager, Feed, Report, Trade, app


class Quote(Message):
    bid: float


class Quoter(Handler):
    @handle
    def on_quote(self, quote: Quote) -> None: ...


class Silent(Handler):
    """Sends what nobody can know before."""

    def on_loop(self) -> None: ...


class Thing:
    pass


class Unfit(Message):
    thing: Thing
    fine: int


class TakesUnfit(Handler):
    @handle
    def on_unfit(self, unfit: Unfit) -> None: ...


def trades():
    """The topology of the README, to be spoilt."""
    topology = Topology("trades")
    topology.worker("ingest", feed=Feed.spec(path="trades.csv"))
    topology.worker("stats", averager=Averager, report=Report)
    topology.route("feed", Trade, to="averager")
    topology.route("averager", Average, to="report")
    return topology


def told(topology):
    with pytest.raises(TopologyError) as caught:
        topology.compile()
    assert caught.value.topology == topology.name
    return caught.value.problems


def the_one(topology, kind, subject):
    (problem,) = told(topology)
    assert (problem.kind, problem.subject) == (kind, subject), problem
    return problem


def test_the_topology_of_the_readme_has_no_mistakes():
    assert [worker.name for worker in app.compile().workers] == ["ingest", "stats"]
    assert [worker.name for worker in trades().compile().workers] == ["ingest", "stats"]


def test_the_order_of_declaration_does_not_matter():
    topology = Topology("trades")
    topology.route("averager", Average, to="report")
    topology.route("feed", Trade, to="averager")
    topology.worker("stats", averager=Averager, report=Report)
    topology.worker("ingest", feed=Feed.spec(path="trades.csv"))
    assert topology.compile().worker_of("report") == "stats"


def test_an_unknown_handler_is_told_with_the_name_that_was_meant():
    topology = trades()
    topology.route("fed", Trade, to="averager")
    problem = the_one(topology, "unknown-handler", "fed")
    assert str(problem).startswith("route from 'fed': no worker hosts a handler of that name; did you mean 'feed'? [")


def test_an_unknown_target_is_told_with_its_route():
    topology = trades()
    topology.route("feed", Trade, to=["averager", "reprot"])
    problems = {problem.kind: problem for problem in told(topology)}
    assert problems["unknown-handler"].text.startswith("route from 'feed' to 'reprot'")
    assert problems["unknown-handler"].hint == "did you mean 'report'?"


def test_a_name_like_no_other_is_told_with_those_there_are():
    topology = trades()
    topology.route("xyz", Trade, to="averager")
    assert the_one(topology, "unknown-handler", "xyz").hint == "the handlers are feed, averager, report"


def test_a_worker_in_the_place_of_a_handler_is_told_as_such():
    topology = trades()
    topology.route("ingest", Trade, to="averager")
    hint = the_one(topology, "unknown-handler", "ingest").hint
    assert hint == "'ingest' is a worker: name one of its handlers, feed"


def test_a_class_in_the_place_of_a_handler_is_told_with_its_name():
    topology = trades()
    topology.route(Feed, Trade, to="averager")
    assert the_one(topology, "unknown-handler", "Feed").hint == "did you mean 'feed'?"


def test_the_gateway_is_not_a_place_to_route_to():
    topology = trades()
    topology.route("averager", Average, to="gateway")
    assert "topology.external" in the_one(topology, "unknown-handler", "gateway").hint


def test_a_worker_declared_twice_is_told_with_both_places():
    topology = trades()
    topology.worker("stats", quoter=Quoter)
    topology.external("quoter")
    problem = the_one(topology, "duplicate-worker", "stats")
    assert problem.text.startswith("worker 'stats' is declared twice (first at test_topology.py:")
    assert problem.where.startswith("test_topology.py:")


def test_a_handler_name_used_in_two_workers_is_told_with_both():
    topology = trades()
    topology.worker("more", report=Report)
    problem = the_one(topology, "duplicate-handler", "report")
    assert problem.text == "handler name 'report' is used twice, in worker 'stats' and in worker 'more'"


def test_a_type_routed_to_a_handler_that_does_not_handle_it_is_told():
    topology = trades()
    topology.route("averager", Trade, to="report")
    problem = the_one(topology, "unhandled-type", "report")
    assert problem.text == "Trade is routed from 'averager' to 'report', but Report does not handle it"
    assert problem.hint.startswith("it handles Average")


def test_a_type_sent_but_not_routed_is_told_with_who_would_take_it():
    topology = Topology("trades")
    topology.worker("all", feed=Feed.spec("x"), averager=Averager, report=Report)
    topology.route("averager", Average, to="report")
    topology.external("averager")
    problem = the_one(topology, "unrouted-send", "feed")
    assert problem.text == "handler 'feed' sends Trade, which is routed nowhere from there"
    assert problem.hint == "add topology.route('feed', Trade, to='averager'), or to=[] if nobody is to get it"


def test_what_is_routed_to_nobody_on_purpose_is_no_mistake():
    topology = Topology("trades")
    topology.worker("w", feed=Feed.spec("x"))
    topology.route("feed", Trade, to=[])
    route = topology.compile().route_for("feed", Trade)
    assert route is not None
    assert route.targets == ()


def test_a_type_handled_but_never_routed_is_told_with_who_sends_it():
    topology = Topology("trades")
    topology.worker("all", feed=Feed.spec("x"), averager=Averager, report=Report)
    topology.route("averager", Average, to="report")
    topology.route("feed", Trade, to=[])
    problem = the_one(topology, "undelivered-type", "averager")
    assert problem.text == "handler 'averager' handles Trade, but no route brings it there"
    assert "topology.route('feed', Trade, to='averager')" in problem.hint
    assert "topology.external('averager', Trade)" in problem.hint


@pytest.mark.parametrize("types", [(), (Quote,), (Quote | Quote,)])
def test_what_comes_from_outside_needs_no_route(types):
    topology = Topology("quotes")
    topology.worker("w", quoter=Quoter)
    topology.external("quoter", *types)
    assert topology.compile().entry("quoter", Quote) is not None


def test_mistakes_in_external_are_told_too():
    topology = trades()
    topology.external("averger", Trade)
    topology.external("averager", Quote)
    topology.external("averager", int)
    unknown, unhandled, no_message = told(topology)
    assert (unknown.kind, unknown.hint) == ("unknown-handler", "did you mean 'averager'?")
    assert (unhandled.kind, unhandled.subject) == ("unhandled-type", "averager")
    assert (no_message.kind, no_message.subject) == ("not-a-message", "int")


def test_a_field_that_cannot_be_encoded_is_told_once_with_its_message():
    topology = Topology("unfit")
    topology.worker("w", silent=Silent, takes=TakesUnfit, other=TakesUnfit)
    topology.route("silent", Unfit, to=["takes", "other"])
    problem = the_one(topology, "unencodable-field", "Unfit")
    assert problem.text.startswith("message Unfit: field thing: `Thing` cannot be encoded")


def test_two_classes_of_one_name_are_told():
    def again():
        class Same(Message):
            x: int

        return Same

    first, second = again(), again()
    topology = Topology("same")
    takes = type("Takes", (Handler,), {"on_it": handle(_annotated(first))})
    topology.worker("w", silent=Silent, takes=takes)
    topology.route("silent", second, to="takes")
    topology.external("takes", first)
    problem = the_one(
        topology, "ambiguous-type", f"{__name__}.test_two_classes_of_one_name_are_told.<locals>.again.<locals>.Same"
    )
    assert "run again" in problem.hint


def _annotated(type_):
    def on_it(self, message): ...

    on_it.__annotations__["message"] = type_
    return on_it


@pytest.mark.parametrize(
    ("name", "suggested"), [("Stats", "'stats'"), ("my stats!", "'my-stats'"), ("x" * 65, f"'{'x' * 64}'"), ("", "")]
)
def test_a_name_that_cannot_be_used_is_told_with_one_that_can(name, suggested):
    topology = trades()
    topology.worker(name, silent=Silent)
    problem = the_one(topology, "bad-name", name)
    assert problem.hint.startswith("names are 1 to 64 of a-z, 0-9, _ and -")
    assert suggested in problem.hint


@pytest.mark.parametrize("name", ["a", "x" * 64, "0_-", "stats-2"])
def test_a_plain_name_can_be_used(name):
    topology = trades()
    topology.worker(name, **{f"{name[:60]}-h": Silent})
    topology.compile()


def test_names_of_handlers_and_topologies_are_checked_too():
    topology = Topology("Trades")
    topology.worker("w", Feed=Silent, gateway=Silent)
    assert [(problem.kind, problem.subject) for problem in told(topology)] == [
        ("bad-name", "Trades"),
        ("bad-name", "Feed"),
        ("reserved-name", "gateway"),
    ]


def test_an_empty_topology_is_a_mistake():
    assert the_one(Topology("nothing"), "empty-topology", "nothing").hint.startswith("add one: topology.worker")


def test_a_worker_without_handlers_is_a_mistake():
    topology = trades()
    topology.worker("idle")
    the_one(topology, "empty-worker", "idle")


def test_a_level_that_there_is_not_is_told_with_the_one_that_was_meant():
    topology = Topology("t", durability="proces")
    topology.worker("w", silent=Silent)
    assert the_one(topology, "bad-level", "proces").hint == "did you mean 'process'?"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("ring_bytes", 4095, "4096 or more"),
        ("ring_bytes", 5000, "take 4096 or 8192"),
        ("ring_bytes", 1.5, "whole number"),
        ("max_message_bytes", 0, "1 or more"),
        ("ring_bytes", True, "whole number"),
        ("ring_bytes", 0, "4096 or more"),
        ("ring_bytes", -4096, "4096 or more"),
        ("ring_bytes", 1 << 32, "2147483648 at most"),
        ("max_message_bytes", 1 << 30, f"take {largest_message(1 << 31)} or less"),
        ("max_attempts", 0, "1 or more"),
        ("batch", -1, "1 or more"),
        ("batch", True, "whole number"),
        ("outbox_limit_bytes", "4M", "whole number"),
        ("claims_limit_bytes", 0, "1 or more"),
        ("max_restarts", -1, "0 or more"),
        ("restart_period", float("nan"), "number of seconds"),
        ("backoff_first", -1.0, "0 or more"),
        ("backoff_max", float("inf"), "number of seconds"),
        ("drain_timeout", None, "number of seconds"),
        ("log_bytes", -1, "0 or more"),
        ("log_bytes", 1000, "or 0 to keep no log"),
    ],
)
def test_a_number_out_of_range_is_told_with_the_range(name, value, hint):
    topology = Topology("t", **{name: value})
    topology.worker("w", silent=Silent)
    assert hint in the_one(topology, "bad-number", name).hint


def test_a_message_that_its_ring_does_not_hold_is_told_with_what_it_does():
    topology = Topology("t", max_message_bytes=1 << 20, ring_bytes=1 << 20)
    topology.worker("w", silent=Silent)
    hint = the_one(topology, "bad-number", "max_message_bytes").hint
    assert f"take {largest_message(1 << 20)} or less, or a larger ring" in hint


def test_an_instance_is_no_handler_class():
    topology = Topology("t")
    topology.worker("w", silent=Silent(), thing=Thing, base=Handler)  # type: ignore[arg-type]
    instance, thing, base = told(topology)
    assert {problem.kind for problem in (instance, thing, base)} == {"not-a-handler"}
    assert (instance.subject, thing.subject, base.subject) == ("silent", "thing", "base")
    assert "Silent.spec(...)" in instance.hint


def test_mistakes_in_a_handler_class_are_told_once_with_its_name():
    class Wrong(Handler):
        @handle
        def on_trade(self, trade): ...

    topology = trades()
    topology.worker("w", wrong=Wrong, again=Wrong)
    topology.route("feed", Trade, to="wrong")
    problem = the_one(topology, "bad-handler", "wrong")
    assert "Wrong: on_trade: its parameter has no annotation" in problem.text


@pytest.mark.parametrize("made", [Feed, Feed.spec(), Feed.spec(path="a", other=1), Feed.spec("a", "b")], ids=repr)  # type: ignore[call-arg]
def test_arguments_that_do_not_fit_the_constructor_are_told(made):
    topology = Topology("t")
    topology.worker("w", feed=made)
    topology.route("feed", Trade, to=[])
    problem = the_one(topology, "bad-arguments", "feed")
    assert "Feed cannot be made with these arguments: " in problem.text
    assert problem.hint == "give them with Feed.spec(...)"


def test_an_argument_that_cannot_be_sent_to_a_worker_is_told():
    topology = Topology("t")
    topology.worker("w", feed=Feed.spec(path=threading.Lock()))  # type: ignore[arg-type]
    topology.route("feed", Trade, to=[])
    problem = the_one(topology, "not-shippable", "feed")
    assert problem.text.startswith("handler 'feed': argument path cannot be sent to a worker: ")


@pytest.mark.parametrize("not_a_type", ["Trade", int, Message, Trade("a", 1.0), None], ids=repr)
def test_what_is_no_message_class_cannot_be_routed(not_a_type):
    topology = trades()
    topology.route("feed", not_a_type, to="averager")
    (problem,) = told(topology)
    assert problem.kind == "not-a-message"
    assert problem.text.startswith("route from 'feed': ")


def test_a_route_declared_twice_is_told():
    topology = trades()
    topology.route("feed", Trade, to="averager")
    assert the_one(topology, "duplicate-route", "feed").text == "Trade is routed from 'feed' to 'averager' twice"


def test_targets_of_several_declarations_add_up():
    topology = trades()
    topology.worker("w", other=Averager)
    topology.route("feed", Trade, to="other")
    topology.route("other", Average, to=["report"])
    plan = topology.compile()
    route = plan.route_for("feed", Trade)
    assert route is not None
    assert route.targets == ("averager", "other")


@pytest.mark.parametrize("types", [(Trade, Quote), [Trade, Quote], Trade | Quote, ((Trade,), Quote)], ids=repr)
def test_several_types_can_be_routed_at_once(types):
    class Both(Handler):
        @handle
        def on_either(self, message: Trade | Quote) -> None: ...

    topology = Topology("t")
    topology.worker("w", silent=Silent, both=Both)
    topology.route("silent", types, to="both")
    assert [route.message for route in topology.compile().routes_from("silent")] == [Trade, Quote]


def test_all_mistakes_are_told_at_once_each_with_the_name_at_fault():
    topology = Topology("Trades", durability="disk", batch=0)
    topology.worker("stats", averager=Averager)
    topology.worker("stats", averager=Averager, bad=Feed)
    topology.route("averager", Average, to="report")
    topology.route("averager", Quote, to="bad")
    topology.route("nobody", Unfit, to="averager")
    found = {(problem.kind, problem.subject) for problem in told(topology)}
    assert found >= {
        ("bad-name", "Trades"),
        ("bad-level", "disk"),
        ("bad-number", "batch"),
        ("duplicate-worker", "stats"),
        ("duplicate-handler", "averager"),
        ("bad-arguments", "bad"),
        ("unknown-handler", "report"),
        ("unknown-handler", "nobody"),
        ("unhandled-type", "bad"),
        ("undelivered-type", "averager"),
        ("unencodable-field", "Unfit"),
    }


@pytest.mark.parametrize("odd", [[1], {}, 5, None, 1.5, {"a": 1}, ("x",)], ids=repr)
def test_declaring_never_fails_whatever_it_is_given(odd):
    topology = Topology(odd, durability=odd, ring_bytes=odd, drain_timeout=odd)
    topology.worker(odd, feed=odd)
    topology.worker("w", **{"a b": odd})
    topology.route(odd, odd, to=odd)
    topology.route("feed", Trade, to=[odd])
    topology.external(odd, odd)
    assert len(told(topology)) > 5


def test_a_problem_names_the_line_of_the_declaration():
    topology = trades()
    topology.route("fed", Trade, to="averager")  # this line
    name, _, line = the_one(topology, "unknown-handler", "fed").where.partition(":")
    with open(__file__) as source:
        assert "# this line" in source.readlines()[int(line) - 1]
    assert name == "test_topology.py"


def test_start_and_run_hand_over_to_the_system(monkeypatch):
    from actors import launch

    calls: list[Any] = []
    monkeypatch.setattr(launch, "start", lambda topology, **options: calls.append(("start", topology, options)))
    monkeypatch.setattr(launch, "run", lambda topology, told: calls.append(("run", topology, told)))
    monkeypatch.setenv("NOTIFY_SOCKET", "@manager")
    topology = trades()
    topology.start(timeout=1)
    topology.run()
    assert calls == [
        ("start", topology, {"timeout": 1, "observer": None}),
        ("run", topology, {"NOTIFY_SOCKET": "@manager"}),
    ]
    assert "NOTIFY_SOCKET" not in os.environ
