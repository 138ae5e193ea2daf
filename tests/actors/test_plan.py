import copy
import os
import pickle
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec import RunCodec
from actors.errors import TopologyError
from actors.fingerprint import type_text
from actors.handler import Handler, describe, handle
from actors.message import Message, State
from actors.plan import GATEWAY, REPLY, Plan, number_edges
from actors.shipping import pack
from actors.table import Table
from actors.topology import Topology
from tests.actors import declared, postponed
from tests.actors.declared import Average, Averager, Feed, Report, Trade, app

ROOT = Path(__file__).parents[2]


class Relay(Handler):
    @handle
    def on_trade(self, trade: Trade) -> None: ...


def ring():
    """in -> a <-> b -> out, and a and local share a worker."""
    topology = Topology("ring")
    topology.worker("in", feed=Feed.spec("x"))
    topology.worker("a", a=Relay, local=Relay)
    topology.worker("b", b=Relay, twin=Relay)
    topology.worker("out", out=Relay)
    topology.route("feed", Trade, to="a")
    topology.route("a", Trade, to=["b", "local", "twin", "out"])
    topology.route("b", Trade, to=["a", "out"])
    return topology.compile()


# Numbers and names


def test_everything_is_numbered_densely():
    plan = ring()
    assert [route.id for route in plan.routes] == list(range(len(plan.routes)))
    assert [edge.index for edge in plan.edges] == list(range(len(plan.edges)))


def test_peers_are_the_gateway_and_the_workers():
    assert ring().peers == (GATEWAY, "in", "a", "b", "out")
    assert [handler.name for handler in ring().handlers] == ["feed", "a", "local", "b", "twin", "out"]


def test_edges_are_the_pairs_that_routes_need_and_those_of_the_gateway():
    ends = [(edge.source, edge.target) for edge in ring().edges]
    assert len(ends) == len(set(ends))
    between = {end for end in ends if GATEWAY not in end}
    assert between == {("in", "a"), ("a", "b"), ("b", "a"), ("a", "out"), ("b", "out")}
    assert set(ends) - between == {
        end for worker in ("in", "a", "b", "out") for end in ((GATEWAY, worker), (worker, GATEWAY))
    }


def test_edges_inside_a_cycle_are_known():
    plan = ring()
    assert plan.components == (frozenset({"in"}), frozenset({"a", "b"}), frozenset({"out"}))
    assert plan.component_of("b") == {"a", "b"}
    assert {edge.name for edge in plan.edges if edge.inside} == {"a>b", "b>a"}


def test_looking_up_by_name():
    plan = ring()
    assert plan.worker_of("local") == "a"
    assert plan.worker_of(GATEWAY) == GATEWAY
    assert plan.worker("a").handlers == (plan.handler("a"), plan.handler("local"))
    assert {edge.source for edge in plan.inbound("a")} == {GATEWAY, "in", "b"}
    assert {edge.target for edge in plan.outbound("b")} == {GATEWAY, "a", "out"}
    assert {edge.source for edge in plan.inbound(GATEWAY)} == {"in", "a", "b", "out"}
    assert plan.edge("in", "a") in plan.edges
    assert plan.edge("a", "in") is None


def test_routes_by_source_and_type():
    plan = ring()
    route = plan.route_for("a", Trade)
    assert route is not None
    assert (route.targets, route.type_name) == (("b", "local", "twin", "out"), "tests.actors.declared.Trade")
    assert plan.source_peer(route) == "a"
    assert plan.target_peers(route) == ("b", "a", "out")
    assert plan.routes_from("a") == (route,)
    assert plan.route_for("a", Average) is None
    assert plan.route_for(GATEWAY, Trade) is None


def test_every_handled_type_has_an_entry_from_outside():
    plan = ring()
    for name in ("a", "local", "b", "twin", "out"):
        route = plan.entry(name, Trade)
        assert route is not None
        assert (route.source, route.targets, route.message) == (GATEWAY, (name,), Trade)
        assert plan.source_peer(route) == GATEWAY
    assert plan.entry("feed", Trade) is None


def test_every_worker_has_a_reply_route():
    plan = ring()
    for worker in ("in", "a", "b", "out"):
        route = plan.reply_route(worker)
        assert (route.message, route.type_name, route.targets) == (None, REPLY, (GATEWAY,))
        assert route.is_reply
        assert plan.source_peer(route) == worker
        assert plan.target_peers(route) == (GATEWAY,)


def test_a_worker_may_have_the_name_of_a_handler():
    topology = Topology("same")
    topology.worker("feed", feed=Feed.spec("x"), relay=Relay)
    topology.route("feed", Trade, to="relay")
    plan = topology.compile()
    assert [route.targets for route in plan.routes_from("feed")] == [("relay",)]
    assert plan.source_peer(plan.reply_route("feed")) == "feed"


def test_route_keys_are_unique():
    keys = [route.key for route in ring().routes]
    assert len(keys) == len(set(keys))
    assert ("gateway:local", "tests.actors.declared.Trade") in keys


WORKERS = tuple("abcde")
PAIRS = st.sets(st.tuples(st.sampled_from(WORKERS), st.sampled_from(WORKERS)))


@given(PAIRS)
def test_an_edge_is_inside_exactly_if_there_is_a_way_back(pairs):
    reach = set(pairs)
    for middle in WORKERS:
        reach |= {(a, b) for a in WORKERS for b in WORKERS if (a, middle) in reach and (middle, b) in reach}
    for edge in number_edges(WORKERS, pairs):
        assert edge.source != edge.target
        assert edge.inside == ((edge.target, edge.source) in reach and GATEWAY not in (edge.source, edge.target))


# The fingerprint


def fingerprint(change=None):
    topology = Topology("trades", batch=7 if change == "batch" else 2048)
    topology.worker("w2" if change == "worker" else "w", feed=Feed.spec("y" if change == "argument" else "x"))
    topology.worker("stats", averager=Averager, report=Report)
    topology.route("feed", Trade, to=[] if change == "route" else "averager")
    topology.route("averager", Average, to="report")
    if change == "external":
        topology.external("report")
    topology.external("averager")
    return topology.compile().fingerprint


@pytest.mark.parametrize("change", ["worker", "route"])
def test_the_fingerprint_changes_with_names_and_routes(change):
    assert fingerprint(change) != fingerprint()


@pytest.mark.parametrize("change", [None, "batch", "argument", "external"])
def test_the_fingerprint_does_not_change_with_numbers_or_arguments(change):
    assert fingerprint(change) == fingerprint()


def shaped(fields, inside=(("x", int),), kept=(("y", int, 0),)):
    """The fingerprint of a topology with a message of these fields, and one struct inside it and one in its state."""
    inner, row, table = msgspec.defstruct("Inner", inside), msgspec.defstruct("Row", kept), typing.cast("Any", Table)
    message = msgspec.defstruct("Shape", [*fields, ("inner", inner | None, None)], bases=(Message,), frozen=True)

    def on_it(self, it): ...

    on_it.__annotations__["it"] = message
    topology = Topology("t")
    takes = type("Takes", (Handler,), {"on_it": handle(on_it), "__annotations__": {"state": table[str, row]}})
    topology.worker("w", takes=takes)
    topology.external("takes")
    return topology.compile().fingerprint


def test_the_fingerprint_changes_with_fields_also_of_structs_inside_and_of_state():
    one = shaped([("a", int), ("b", str | None)])
    assert one == shaped([("a", int), ("b", str | None)]) == shaped([("a", int), ("b", None | str)])
    others = [
        shaped([("a", int), ("b", str)]),
        shaped([("b", str | None), ("a", int)]),
        shaped([("a", int), ("b", str | None, None)]),
        shaped([("a", int)]),
        shaped([("a", int), ("b", str | None)], [("x", str)]),
        shaped([("a", int), ("b", str | None)], kept=[("y", str, "")]),
    ]
    assert len({one, *others}) == 7


def test_the_fingerprint_is_the_same_in_every_process():
    code = "from tests.actors.declared import app; print(app.compile().fingerprint)"
    for seed in "01":
        assert python("-c", code, PYTHONHASHSEED=seed).strip() == app.compile().fingerprint


def test_types_as_text_are_stable():
    assert type_text(dict[str, tuple[int, ...] | None]) == "dict[str, None | tuple[int, ...]]"
    assert type_text(Trade) == "tests.actors.declared.Trade"


# Shipping


def python(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
import pickle, sys
from actors.codec import RunCodec, StateCodec
from actors.handler import describe
from actors.table import Table
plan = pickle.load(open(sys.argv[1], "rb"))
feed, averager, report = plan.handlers
trade = plan.routes_from("feed")[0].message
assert trade.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "Trade")
for handler in plan.handlers:
    again = describe(handler.spec.cls)
    assert again.handles == handler.description.handles and again.problems == ()
    assert again.state is handler.description.state
sent = []
source = feed.spec.cls(*feed.spec.args, **feed.spec.kwargs)
vars(source)["send"] = sent.append
source.on_loop()
codec = RunCodec(trade)
body = codec.encode_run(sent)
codec.check_run(body, sent)
assert codec.decode_run(body) == [trade("ACME", 2.5)]
target = averager.spec.cls()
target.state = StateCodec(averager.description.state).fresh()
vars(target)["send"] = sent.append
getattr(target, averager.description.handles[trade])(codec.decode_run(body)[0])
assert target.state.count == {"ACME": 1}
final = report.spec.cls()
final.state = Table(*report.description.table)
final.on_average(sent[-1])
assert [one.type_name for one in plan.routes][:2] == ["declared.Trade", "declared.Average"]
assert final.state["ACME"].last == 2.5
print(plan.fingerprint, codec.type_name, source.path)
"""


@pytest.mark.parametrize("postpone", ["", "from __future__ import annotations\n"], ids=["types", "strings"])
def test_classes_of_a_script_work_in_another_process(tmp_path, postpone):
    script, plan, reader = tmp_path / "declared.py", tmp_path / "plan", tmp_path / "read.py"
    script.write_text(postpone + Path(declared.__file__).read_text())
    reader.write_text(READ)
    python(str(script), str(plan))
    fingerprint, name, path = python(str(reader), str(plan)).split()
    assert name == "declared.Trade"
    assert path == "trades.csv"
    assert len(fingerprint) == 32


LATE = """

class Envelope(Message):
    ping: Ping
    late: list[Late | None]
    rest: Envelope | None = None

class Opens(Handler):
    @handle
    def on_envelope(self, envelope: Envelope) -> None:
        pass

from actors.topology import Topology
import pickle, sys
app = Topology("late")
app.worker("w", early=Early, opens=Opens)
app.external("early")
app.external("opens")
pickle.dump(app.compile(), open(sys.argv[1], "wb"))
"""

READ_LATE = """
import pickle, sys
from actors.codec import RunCodec
from actors.handler import describe
plan = pickle.load(open(sys.argv[1], "rb"))
for handler in plan.handlers:
    assert describe(handler.spec.cls) == handler.description
(envelope,) = plan.handlers[1].description.handles
late, ping = plan.handlers[0].description.handles
codec = RunCodec(envelope)
first = envelope(ping(1), [late("a"), None])
assert codec.decode_run(codec.encode_run([envelope(ping(2), [], first)]))[0].rest == first
"""


def test_names_defined_further_down_a_script_work_in_another_process(tmp_path):
    script, plan, reader = tmp_path / "late.py", tmp_path / "plan", tmp_path / "read.py"
    text = Path(postponed.__file__).read_text()
    script.write_text(text[: text.index("class Unknown")] + LATE)
    reader.write_text(READ_LATE)
    python(str(script), str(plan))
    python(str(reader), str(plan))


LOCAL = """
import pickle, sys
plan = pickle.load(open(sys.argv[1], "rb"))
from actors.codec import RunCodec, StateCodec
from actors.handler import describe
(handler,) = plan.handlers
(message,) = handler.description.handles
codec = RunCodec(message)
instance = handler.spec.cls()
instance.state = StateCodec(handler.description.state).fresh()
for one in codec.decode_run(codec.encode_run([message(3)] * 2)):
    instance.on_local(one)
assert instance.state.seen == 2
assert describe(handler.spec.cls) == handler.description
"""


def test_classes_local_to_a_function_work_in_another_process(tmp_path):
    _, _, counter = postponed.local_handler()
    topology = Topology("local")
    topology.worker("w", counter=counter)
    topology.external("counter")
    (tmp_path / "plan").write_bytes(cloudpickle.dumps(topology.compile()))
    (tmp_path / "read.py").write_text(LOCAL)
    python(str(tmp_path / "read.py"), str(tmp_path / "plan"))


def test_a_plan_survives_every_pickler():
    plan = app.compile()
    for again in (
        pickle.loads(pickle.dumps(plan)),
        cloudpickle.loads(cloudpickle.dumps([plan]))[0],
        copy.deepcopy(plan),
    ):
        assert again == plan
        assert isinstance(again, Plan)
        assert again.worker_of("report") == "stats"


def remade(monkeypatch, cls):
    """The class as a process that does not have it gets it."""
    import actors.shipping

    data = pack(cls)
    monkeypatch.setattr(actors.shipping, "_made", {})
    again = pickle.loads(data)
    assert again is not cls
    return again


def test_a_remade_struct_is_like_the_first(monkeypatch):
    class Base(Message):
        a: int
        b: list[int] = []

    class Node(Base, rename={"c": "see"}, tag="node", kw_only=True, order=True):
        """With a docstring."""

        LIMIT = 5
        c: str = "x"
        child: "Node | None" = None
        made: dict[str, int] = msgspec.field(default_factory=lambda: {"a": Node.LIMIT})

        @property
        def twice(self) -> int:
            return self.a * 2

        def grown(self) -> "Node":
            return Node(self.a + 1, c=self.c, child=self)

        def base_repr(self) -> str:
            return super().__repr__()

    again = remade(monkeypatch, Node)
    assert again.__doc__ == "With a docstring."
    assert (again.__module__, again.__qualname__) == (Node.__module__, Node.__qualname__)
    assert again.__struct_fields__ == Node.__struct_fields__
    assert again.__struct_encode_fields__ == Node.__struct_encode_fields__
    node, other = Node(1, c="z").grown(), again(1, c="z").grown()
    assert type(other) is again
    assert other.child.twice == 2
    assert other.made == {"a": 5}
    assert other.base_repr() == node.base_repr()
    assert other.child < other
    encoded = RunCodec(Node).encode_run([node])
    assert RunCodec(again).encode_run([other]) == encoded
    assert RunCodec(again).decode_run(encoded) == [other]
    with pytest.raises(TypeError):
        again(1, [], "c")
    with pytest.raises(AttributeError):
        other.a = 3


def test_a_remade_state_is_mutable_with_its_own_defaults(monkeypatch):
    class Count(State):
        seen: dict[str, int] = {}

    again = remade(monkeypatch, Count)
    one, other = again(), again()
    one.seen["a"] = 1
    assert other.seen == {}


def test_the_same_class_shipped_twice_is_one_class():
    class Once(Message):
        x: int

    assert pickle.loads(pack([Once]))[0] is pickle.loads(pack([Once]))[0] is Once


def test_a_struct_with_an_unresolvable_field_cannot_be_shipped():
    class Lost(Message):
        x: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(pickle.PicklingError, match="Lost"):
        pack(Lost)


def test_a_handler_that_mentions_an_unshippable_struct_is_told():
    class Lost(Message):
        x: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    class Mentions(Handler):
        def on_start(self) -> None:
            Lost(1)

    topology = Topology("t")
    topology.worker("w", mentions=Mentions)
    with pytest.raises(TopologyError) as caught:
        topology.compile()
    assert [problem.kind for problem in caught.value.problems] == ["not-shippable"]


def test_describing_a_shipped_class_gives_the_same():
    for handler in pickle.loads(pickle.dumps(app.compile())).handlers:
        assert describe(handler.spec.cls) == handler.description


SCRIPT_WITH_FIELDS = """
import dataclasses, enum, typing
import msgspec
from actors import Handler, Message, Topology, handle

class Color(enum.Enum):
    RED = "r"

@dataclasses.dataclass(frozen=True)
class Point:
    x: int

class Pair(typing.NamedTuple):
    a: int

class M(Message):
    color: Color
    point: Point
    pair: Pair

class H(Handler):
    @handle
    def on_m(self, m: M) -> None: ...

app = Topology("fields")
app.worker("w", h=H)
app.external("h")
msgspec.msgpack.decode(msgspec.msgpack.encode(M(Color.RED, Point(1), Pair(2))), type=M)
plan = app.compile()
import pickle, sys
pickle.loads(pickle.dumps(plan))
print("shipped")
"""


def test_enums_and_dataclasses_of_a_script_can_be_shipped(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT_WITH_FIELDS)
    assert python(str(script)).strip() == "shipped"
