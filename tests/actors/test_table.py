from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actors.errors import BadRecord, BadState
from actors.message import Message, State
from actors.table import Table


class Stats(State):
    count: int = 0
    delays: list[float] = []


class Fixed(Message):
    sizes: tuple[int, ...]


def encoded(*values):
    return tuple(msgspec.msgpack.encode(value) for value in values)


def commit(table):
    changes = table.changes()
    table.committed()
    return changes


def reloaded(table, key_type, value_type):
    again = Table(key_type, value_type)
    again.load(table.encoded())
    return again


def test_it_is_a_dict():
    table = Table(str, int)
    table.update(a=1, b=2)
    table["a"] += 5
    del table["b"]
    assert dict(table) == {"a": 6} == table
    assert "a" in table
    assert "b" not in table
    assert table.get("b", 9) == 9
    assert table.setdefault("c", 3) == 3
    assert table.pop("c") == 3
    assert list(table) == ["a"]
    assert len(table) == 1
    with pytest.raises(KeyError):
        table["b"]
    with pytest.raises(KeyError):
        del table["b"]
    table.clear()
    assert not table


def test_only_the_changed_keys_are_written():
    table = Table(str, int)
    table.update(a=1, b=2, c=3)
    assert commit(table) == [encoded("a", 1), encoded("b", 2), encoded("c", 3)]
    table["b"] = 20
    table["c"] = 3
    del table["a"]
    assert commit(table) == [(*encoded("a"), None), encoded("b", 20)]
    assert commit(table) == []


def test_a_change_inside_a_value_is_never_missed():
    table = Table(str, Stats)
    table["a"], table["b"], table["c"] = Stats(), Stats(), Stats()
    commit(table)
    table["a"].count += 1
    for name, stats in table.items():
        if name == "b":
            stats.delays.append(1.5)
    next(value for value in table.values() if value is table["c"]).count = 7
    assert {key for key, _ in commit(table)} == set(encoded("a", "b", "c"))
    assert reloaded(table, str, Stats)["b"].delays == [1.5]


def test_reading_alone_writes_nothing():
    table = Table(str, Stats)
    table["a"] = Stats()
    commit(table)
    assert table["a"].count == 0
    assert commit(table) == []


def test_reading_values_that_cannot_change_marks_nothing(monkeypatch):
    import actors.table

    table = Table(str, int)
    table["a"] = 1
    commit(table)
    monkeypatch.setattr(actors.table, "_encode", None)
    assert table["a"] == 1
    assert table.changes() == []


def test_a_value_kept_beyond_its_transaction_is_not_the_tables():
    """Else a change in it would be there until the next restart, and then not."""
    table = Table(str, Stats)
    table["a"] = kept = Stats()
    commit(table)
    kept.count = 1
    read = table["a"]
    assert read.count == 0
    commit(table)
    read.count = 2
    assert table["a"].count == 0
    assert commit(table) == []


def test_a_list_in_the_place_of_a_tuple_is_a_tuple_after_the_commit():
    table = Table(str, tuple[int, ...])
    numbers = [1, 2]
    table["a"] = numbers  # type: ignore[assignment]
    commit(table)
    numbers.append(3)
    assert table["a"] == (1, 2)
    table["b"] = Fixed([4]).sizes  # type: ignore[arg-type]
    commit(table)
    assert table["b"] == (4,)


def test_the_order_is_that_of_insertion_and_survives_a_restart():
    table = Table(str, int)
    table.update(a=1, b=2, c=3)
    commit(table)
    del table["a"]
    table["d"] = 4
    table["a"] = 1
    table["b"] = 20
    assert list(table) == ["b", "c", "d", "a"]
    changes = commit(table)
    assert changes == [(*encoded("a"), None), encoded("b", 20), encoded("d", 4), encoded("a", 1)]
    assert list(table) == list(reloaded(table, str, int)) == ["b", "c", "d", "a"]


def test_a_key_set_and_removed_within_a_transaction_was_never_there():
    table = Table(str, int)
    table["a"] = 1
    del table["a"]
    assert commit(table) == []


def test_rollback_is_the_last_commit():
    table = Table(str, Stats)
    table["a"], table["b"] = Stats(1), Stats(2)
    commit(table)
    table["a"].count = 10
    del table["b"]
    table["c"] = Stats(3)
    table.changes()
    table.rollback()
    assert {name: stats.count for name, stats in table.items()} == {"a": 1, "b": 2}
    assert list(table) == ["a", "b"]
    assert commit(table) == []


def test_rollback_brings_back_a_removed_key_in_its_place():
    table = Table(str, int)
    table.update(a=1, b=2)
    commit(table)
    del table["a"]
    table.rollback()
    assert list(table.items()) == [("a", 1), ("b", 2)]


def test_rollback_takes_back_a_change_inside_a_value():
    table = Table(str, Stats)
    table["a"] = Stats(1)
    commit(table)
    table["a"].count = 10
    table.rollback()
    assert table["a"].count == 1


def test_values_are_decoded_when_they_are_read():
    table = Table(str, int)
    table.load({encoded("a")[0]: b"\xc1", encoded("b")[0]: encoded(2)[0]})
    assert table["b"] == 2
    assert len(table) == 2
    with pytest.raises(msgspec.DecodeError):
        table["a"]


def test_loading_replaces_everything():
    table = Table(str, int)
    table.update(a=1)
    commit(table)
    table.update(b=2)
    table.load(dict([encoded("c", 3)]))
    assert dict(table) == {"c": 3}
    assert commit(table) == []


def test_a_loaded_key_of_another_type_is_refused():
    with pytest.raises(BadRecord, match="key"):
        Table(int, int).load(dict([encoded("a", 1)]))


BAD = [
    (Table(str, int), "a", "text", "value of key 'a'"),
    (Table(str, int), "a", object(), "value of key 'a'"),
    (Table(str, int), 5, 1, "key 5"),
    (Table(tuple[int, ...], int), ("x",), 1, "key ('x',)"),
    (Table(float, int), float("nan"), 1, "key nan"),
    (Table(str, int), "x" * 100, "text", "value of key 'xxx"),
]


@pytest.mark.parametrize(("table", "key", "value", "where"), BAD, ids=lambda one: str(one)[:20])
def test_what_does_not_fit_its_type_is_refused_by_key_and_nothing_is_committed(table, key, value, where):
    table[key] = value
    with pytest.raises(BadState) as caught:
        table.changes()
    assert caught.value.where.startswith(where)
    assert len(caught.value.where) < 100
    table.rollback()
    assert table.encoded() == {}
    assert not table


def test_a_changed_value_that_does_not_fit_any_more_is_refused():
    table = Table(str, Stats)
    table["a"] = Stats()
    commit(table)
    table["a"].count = "one"  # type: ignore[assignment]
    with pytest.raises(BadState, match="value of key 'a'"):
        table.changes()


def test_equal_keys_are_one_key_also_when_they_encode_differently():
    table = Table(float, int)
    table[0.0] = 1
    commit(table)
    table[-0.0] = 2
    assert commit(table) == [encoded(0.0, 2)]
    del table[-0.0]
    assert commit(table) == [(encoded(0.0)[0], None)]


KEYS = st.sampled_from(["a", "b", "c", "d"])


class TableIsADictThatIsCommitted(RuleBasedStateMachine):
    """Against a plain dict, and a journal that is folded as recovery does it."""

    def __init__(self):
        super().__init__()
        self.table: Table[str, Any] = Table(str, list[int])
        self.model: dict[str, list[int]] = {}
        self.durable: dict[bytes, bytes] = {}
        self.before: dict[str, list[int]] = {}

    @rule(key=KEYS, value=st.lists(st.integers(0, 2), max_size=2))
    def set_item(self, key, value):
        self.table[key], self.model[key] = list(value), list(value)

    @rule(key=KEYS)
    def remove(self, key):
        assert self.table.pop(key, None) == self.model.pop(key, None)

    @rule(key=KEYS, value=st.integers(0, 2))
    def change_inside(self, key, value):
        if key in self.model:
            self.table[key].append(value)
            self.model[key].append(value)

    @rule(key=KEYS)
    def change_back(self, key):
        if self.model.get(key):
            self.table[key].append(self.table[key].pop())

    @rule()
    def change_all(self):
        for value in self.table.values():
            value.append(3)
        for value in self.model.values():
            value.append(3)

    @rule()
    def commit(self):
        changes = self.table.changes()
        for key, value in changes:
            if value is None:
                del self.durable[key]
            else:
                assert self.durable.get(key) != value
                self.durable[key] = value
        self.table.committed()
        self.before = {key: list(value) for key, value in self.model.items()}
        assert list(self.table.encoded().items()) == list(self.durable.items())

    @rule()
    def roll_back(self):
        self.table.rollback()
        self.model = {key: list(value) for key, value in self.before.items()}

    @rule()
    def restart(self):
        self.table = Table(str, list[int])
        self.table.load(self.durable)
        self.model = {key: list(value) for key, value in self.before.items()}

    @invariant()
    def same_keys_in_the_same_order(self):
        assert list(self.table) == list(self.model)

    @rule()
    def same_items(self):
        assert list(self.table.items()) == list(self.model.items())


TestTableIsADictThatIsCommitted = TableIsADictThatIsCommitted.TestCase
TestTableIsADictThatIsCommitted.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.dictionaries(st.text(), st.integers(0, 9)))
def test_a_reloaded_table_is_the_committed_one(items):
    table = Table(str, int)
    table.update(items)
    commit(table)
    assert list(reloaded(table, str, int).items()) == list(items.items())
