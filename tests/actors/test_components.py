import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.components import strongly_connected


def test_nodes_on_no_cycle_are_components_of_their_own():
    assert strongly_connected("abc", [("a", "b"), ("b", "c")]) == (frozenset("a"), frozenset("b"), frozenset("c"))


def test_a_cycle_is_one_component():
    assert strongly_connected("abcd", [("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]) == (
        frozenset("a"),
        frozenset("bc"),
        frozenset("d"),
    )


def test_two_cycles_that_touch_are_one():
    assert strongly_connected("abc", [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]) == (frozenset("abc"),)


def test_an_edge_to_itself_changes_nothing():
    assert strongly_connected("ab", [("a", "a"), ("a", "b"), ("a", "b")]) == (frozenset("a"), frozenset("b"))


def test_the_order_is_that_of_the_nodes():
    assert strongly_connected("dcba", [("a", "b"), ("b", "a")]) == (frozenset("d"), frozenset("c"), frozenset("ab"))


def test_a_long_chain_needs_no_deep_stack():
    nodes = [str(number) for number in range(20_000)]
    ring = list(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
    assert len(strongly_connected(nodes, ring[:-1])) == 20_000
    assert len(strongly_connected(nodes, ring)) == 1


@pytest.mark.parametrize("edge", [("a", "x"), ("x", "a")])
def test_an_end_that_is_no_node_is_refused(edge):
    with pytest.raises(KeyError, match="x"):
        strongly_connected("a", [edge])


NODES = "abcdefg"
EDGES = st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), max_size=20)


@given(EDGES)
def test_two_nodes_share_a_component_exactly_if_each_reaches_the_other(edges):
    reach = {(a, b) for a in NODES for b in NODES if a == b or (a, b) in edges}
    for middle in NODES:
        reach |= {(a, b) for a in NODES for b in NODES if (a, middle) in reach and (middle, b) in reach}
    components = strongly_connected(NODES, edges)
    assert sorted("".join(map("".join, components))) == list(NODES)
    for component in components:
        for a in component:
            assert component == {b for b in NODES if (a, b) in reach and (b, a) in reach}
