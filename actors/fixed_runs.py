"""Runs of fixed messages: their rows, one behind the other, behind the fingerprint of their layout.

    body     :=  fingerprint row*                                  (`actors.layout`; every row as long as the next)
    element  :=  an element of the codec `fixed`, whose payload is: fingerprint row       (`actors.sealed`)

A run is split into elements, and joined from them, without its class. What stands alone is an element: a message of a
handler for one of the same worker, one that is handled again, a dead letter. The body of a run stands at a multiple of
8 in the ring, so its rows do too: the receiver's array is a view of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from actors.codec import RunCodec, summary
from actors.errors import BadMessage, BadRecord, CodecRefused, LayoutMismatch, MessageTooLarge
from actors.fixed import FixedMessage, dtype_of, layout_of, numpy, record_of
from actors.layout import FINGERPRINT, TAG, Misfit
from actors.message import Message, type_name
from actors.sealed import head, is_sealed, unseal
from actors.views import Views

NAME = "fixed"  # of the codec, in elements

_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def is_rows(body: bytes | memoryview) -> bool:
    """Whether this is the body of a run of fixed messages; otherwise it is an array of whatever."""
    return len(body) > 0 and body[0] == TAG


def elements(body: bytes | memoryview, count: int) -> Iterator[bytes]:
    """The messages of such a run, each one by itself. BadRecord if it is not one of so many."""
    fingerprint, rows = bytes(body[:FINGERPRINT]), memoryview(body)[FINGERPRINT:]
    size, rest = divmod(len(rows), count)
    if rest or not size:
        raise BadRecord(f"{count} rows cannot have {len(rows)} bytes", len(body))
    begin = head(NAME.encode(), FINGERPRINT + size) + fingerprint
    for at in range(0, len(rows), size):
        yield begin + rows[at : at + size]


class FixedRuns(RunCodec):
    """The side that sends. Needs no NumPy."""

    def __init__(self, type_: type[FixedMessage]) -> None:
        self.type = type_
        self.type_name = type_name(type_)
        self.late, self.packing = False, None
        self.layout = layout_of(type_)
        self.fingerprint = self.layout.fingerprint
        self._head = head(NAME.encode(), FINGERPRINT + self.layout.size) + self.fingerprint

    def encode_run(self, messages: Sequence[Message]) -> bytes:
        rows = [self._row(message, index) for index, message in enumerate(messages)]
        return b"".join((self.fingerprint, *rows))

    def check_run(self, body: bytes, messages: Sequence[Message] | None = None) -> None:
        """What was encoded fits."""

    def encode_one(self, message: Message) -> bytes:
        return self._head + self._row(message, 0)

    def encode_alone(self, message: Any, in_ring: int, largest: int) -> bytes:
        """A row is never so long that it would need a claim."""
        encoded = self.encode_one(message)
        if len(encoded) > in_ring:
            raise MessageTooLarge(self.type_name, len(encoded), in_ring)
        return encoded

    def join(self, encoded: Sequence[bytes]) -> bytes:  # type: ignore[override]
        begin = len(self._head)
        return b"".join((self.fingerprint, *(element[begin:] for element in encoded)))

    def decode_run(self, body: bytes | memoryview) -> list[Any]:
        return [self.decode_one(element) for element in elements(body, (len(body) - FINGERPRINT) // self.layout.size)]

    def decode_one(self, encoded: Any) -> Any:
        """As a message of the class: for whoever asked, outside of any worker."""
        values = self.layout.unpack(self.row(encoded)).values()
        return self.type(**dict(zip(self.type.__struct_fields__, values, strict=True)))

    def row(self, encoded: bytes | memoryview) -> memoryview:
        """The row of an element. LayoutMismatch, CodecRefused or BadRecord if it is none of this class."""
        if not is_sealed(encoded):
            raise CodecRefused(self.type_name, "msgpack", NAME)
        name, payload = unseal(encoded)
        if name != NAME:
            raise CodecRefused(self.type_name, name, NAME)
        return self.check(payload, 1)

    def check(self, body: memoryview, count: int | None = None) -> memoryview:
        """The rows of a body."""
        if body[:FINGERPRINT] != self.fingerprint:
            theirs = f"one with the fingerprint {bytes(body[:FINGERPRINT]).hex()}"
            ours = f"{self.layout.text} ({self.fingerprint.hex()})"
            raise LayoutMismatch(self.type_name, ours, theirs, "in a record of its sender")
        rows = body[FINGERPRINT:]
        if not rows or len(rows) % self.layout.size or (count is not None and len(rows) != count * self.layout.size):
            wanted = "a multiple of " if count is None else ""
            raise BadRecord(f"rows of {self.type_name} have {wanted}{self.layout.size * (count or 1)} bytes", len(rows))
        return rows

    def _row(self, message: Any, index: int) -> bytes:
        try:
            return self.layout.pack([getattr(message, name) for name in self.type.__struct_fields__])
        except Misfit as misfit:
            raise BadMessage(index, self.type_name, summary(misfit.value), misfit.reason, misfit.field) from misfit


class FixedInlet(FixedRuns):
    """The side that receives. What its runs consist of are read-only structured arrays, lent to the handlers."""

    def __init__(self, type_: type[FixedMessage], views: Views) -> None:
        super().__init__(type_)
        self.late = True  # nobody can change it, so every handler may be given the same one
        self._views = views
        self._np = numpy()
        self._dtype = dtype_of(type_)
        self._record = record_of(type_)

    def decode_run(self, body: bytes | memoryview) -> Any:
        if not is_rows(body):  # what was a dead letter
            try:
                encoded = _split(body)
            except msgspec.MsgspecError as error:
                raise BadRecord(f"not a run of {self.type_name}: {error}", len(body)) from error
            if not encoded:
                raise BadRecord(f"an empty run of {self.type_name}", len(body))
            return self._together([self.decode_one(memoryview(one)) for one in encoded])
        view = memoryview(body)
        return self._lent(self.check(view), shared=not isinstance(view.obj, (bytes, bytearray)))

    def decode_one(self, encoded: Any) -> Any:
        """An array of one row."""
        return self._lent(self.row(encoded), shared=False)

    def calling(self, method: Callable[[Any], object], batch: bool) -> Callable[[Any], object]:
        if batch:
            return lambda rows: method(self._together(rows) if isinstance(rows, list) else rows)
        record, array = self._record, self._np.ndarray
        return lambda row: method(row.view(record)[0] if isinstance(row, array) else row)

    def each(self, rows: Any) -> list[Any]:
        """The rows one by one, for a handler that takes them so."""
        return list(rows.view(self._record))

    def _lent(self, rows: memoryview, *, shared: bool) -> Any:
        return self._views.lend(self._np.frombuffer(rows.toreadonly(), self._dtype), self.type_name, shared=shared)

    def _together(self, rows: list[Any]) -> Any:
        if len(rows) == 1:
            return rows[0]
        joined = self._np.concatenate(rows)
        joined.flags.writeable = False
        return self._views.lend(joined, self.type_name, shared=False)
