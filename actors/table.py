"""A keyed table: durable state that may be large, of which a commit writes only the keys that changed.

    class Stats(Handler):
        state: Table[str, CarrierStats]

For the handler it is a dict, in insertion order, and the order survives restarts. Keys and values have the declared
types when they are committed, or the commit fails and says which key is at fault.

Reading a value marks its key, unless the value cannot change, so that a change inside a value is never missed: at the
commit the marked keys are encoded and compared with what is committed. A value read belongs to the transaction it was
read in: after the commit it is read anew. Do not keep one from one message to the next; what is changed in it then, is
not in the table.

The side of the runtime: `changes` and then, once they are durable, `committed`; or `rollback`. Pure: no file, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final, TypeVar

import msgspec

from actors.errors import BadRecord, BadState
from actors.message import is_immutable

K = TypeVar("K")
V = TypeVar("V")

_encode = msgspec.msgpack.Encoder().encode


class _Unread:
    """Stands for a value that is only there encoded."""


_UNREAD: Final[Any] = _Unread()


class Table(MutableMapping[K, V]):
    """A dict whose changes are durable. Made by the runtime, from the annotation `state: Table[K, V]`."""

    def __init__(self, key_type: type[K], value_type: type[V]) -> None:
        self._frozen = is_immutable(value_type)
        self._decode_key = msgspec.msgpack.Decoder(key_type).decode
        self._decode_value = msgspec.msgpack.Decoder(value_type).decode
        self._live: dict[K, V] = {}  # every key there is, with its value or _UNREAD
        self._stored: dict[K, tuple[bytes, bytes]] = {}  # what is committed, encoded
        self._touched: dict[K, None] = {}  # keys that were there at the last commit, and may have another value now
        self._fresh: dict[
            K, None
        ] = {}  # keys set since the last commit, that were not there then or were removed since
        self._dropped: dict[K, None] = {}  # keys removed since the last commit, also if they were set again
        self._pending: list[
            tuple[K, bytes, bytes, V]
        ] = []  # what `changes` returned to be set, and the values read back

    # The side of the handler

    def __getitem__(self, key: K) -> V:
        value = self._live[key]
        if value is _UNREAD:
            value = self._live[key] = self._decode_value(self._stored[key][1])
        if not self._frozen and key not in self._fresh:
            self._touched[key] = None
        return value

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self._live:
            self._fresh[key] = None
        elif key not in self._fresh:
            self._touched[key] = None
        self._live[key] = value

    def __delitem__(self, key: K) -> None:
        del self._live[key]
        self._touched.pop(key, None)
        self._fresh.pop(key, None)
        if key in self._stored:
            self._dropped[key] = None

    def __contains__(self, key: object) -> bool:
        return key in self._live

    def __iter__(self) -> Iterator[K]:
        return iter(self._live)

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return f"Table({dict(self.items())!r})"

    # The side of the runtime

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """What to write to get from the committed table to this one: (key, value), in order; None removes the key.

        Only what differs from the committed encoding is in it. A key that was removed and set again is removed and
        written, since it now stands at the end. BadState if a key or a value does not fit its declared type.
        """
        removals = [(self._stored[key][0], None) for key in self._dropped]
        self._pending = []
        for key in self._touched:
            encoded, before = self._stored[key]
            after = self._encoded_value(key)
            if after != before:
                self._pending.append((key, encoded, after, self._read_back(key, after)))
        for key in self._fresh:
            after = self._encoded_value(key)
            self._pending.append((key, self._encoded_key(key), after, self._read_back(key, after)))
        return [*removals, *((encoded, after) for _, encoded, after, _ in self._pending)]

    def committed(self) -> None:
        """What the last `changes` returned is durable now."""
        for key in self._dropped:
            del self._stored[key]
        for key, encoded, after, _ in self._pending:
            self._stored[key] = (encoded, after)
        pending = self._pending
        self._forget()
        for key, _, _, value in pending:
            self._live[key] = value

    def rollback(self) -> None:
        """Be what was last committed."""
        if self._fresh or self._dropped:
            self._live = dict.fromkeys(self._stored, _UNREAD)
        self._forget()

    def load(self, items: Mapping[bytes, bytes]) -> None:
        """Be this, committed; whatever was in the table is gone. BadRecord if a key does not fit the declared type."""
        self._stored = {}
        for encoded, value in items.items():
            try:
                key = self._decode_key(encoded)
            except msgspec.MsgspecError as error:
                raise BadRecord(f"not a key of this table: {error}", len(encoded)) from error
            self._stored[key] = (encoded, value)
        self._live = dict.fromkeys(self._stored, _UNREAD)
        self._fresh.clear()
        self._dropped.clear()
        self._forget()

    def encoded(self) -> dict[bytes, bytes]:
        """The whole committed table, for a snapshot; `load` takes it."""
        return dict(self._stored.values())

    def _forget(self) -> None:
        """End the transaction: what may have been changed, or is not known to be of its type, is read anew."""
        for keys in (self._touched, self._fresh):
            for key in keys:
                if key in self._stored:
                    self._live[key] = _UNREAD
            keys.clear()
        self._dropped.clear()
        self._pending = []

    def _encoded_value(self, key: K) -> bytes:
        try:
            return _encode(self._live[key])
        except Exception as error:
            raise BadState(f"value of key {_short(key)}", str(error)) from error

    def _read_back(self, key: K, encoded: bytes) -> V:
        """The value as it will be found by the next transaction, and by the next incarnation."""
        try:
            return self._decode_value(encoded)
        except Exception as error:
            raise BadState(f"value of key {_short(key)}", str(error)) from error

    def _encoded_key(self, key: K) -> bytes:
        try:
            encoded = _encode(key)
            read = self._decode_key(encoded)
        except Exception as error:
            raise BadState(f"key {_short(key)}", str(error)) from error
        if read != key:
            raise BadState(f"key {_short(key)}", f"it would be read back as {_short(read)}")
        return encoded


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 60 else f"{text[:57]}..."
