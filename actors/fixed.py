"""Fixed messages: rows of one layout, written and read in place as NumPy arrays.

    class Tick(FixedMessage):
        symbol: Annotated[bytes, Size(16)]
        price: f8
        size: u4
        levels: Annotated[tuple[f8, ...], Size(4)]

    class Feed(Handler):
        def on_loop(self):
            with self.reserve(Tick, 1000) as rows:      # rows of zeros, to be filled in here
                rows["price"] = ...

    class Sums(Handler):
        @handle(batch=True)
        def on_ticks(self, ticks: Rows[Tick]):          # a read-only structured array
            ... ticks["price"].sum()

        @handle
        def on_tick(self, tick: Tick): ...              # or one by one: a read-only record, tick.price

A fixed message is a Message as well: `self.send(Tick(b"A", 1.5, 3, (0.0,) * 4))` sends one row.

NumPy is imported where a fixed message is first used, not by importing this.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeGuard, TypeVar

from msgspec.structs import fields

from actors.errors import MissingNumPy
from actors.layout import MOST_BYTES, BadField, Layout, Scalar, Size, kind_of, place
from actors.message import Message

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FixedMessage", "Rows", "Size", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

u1 = Annotated[int, Scalar("u1")]
u2 = Annotated[int, Scalar("u2")]
u4 = Annotated[int, Scalar("u4")]
u8 = Annotated[int, Scalar("u8")]
i1 = Annotated[int, Scalar("i1")]
i2 = Annotated[int, Scalar("i2")]
i4 = Annotated[int, Scalar("i4")]
i8 = Annotated[int, Scalar("i8")]
f4 = Annotated[float, Scalar("f4")]
f8 = Annotated[float, Scalar("f8")]


class _DType:
    """`Tick.dtype`."""

    def __get__(self, instance: object, owner: type[FixedMessage]) -> np.dtype[np.void]:
        return dtype_of(owner)


class FixedMessage(Message):
    """Base of messages of a fixed layout: fields are numbers of a size (`u1` to `f8`), bool, bytes and small arrays.

    Bytes come without the zeros at their end. `Tick.dtype` is what NumPy knows the layout by.
    """

    dtype: ClassVar[_DType] = _DType()


F = TypeVar("F", bound=FixedMessage)


def is_fixed(type_: object) -> TypeGuard[type[FixedMessage]]:
    return isinstance(type_, type) and issubclass(type_, FixedMessage)


if TYPE_CHECKING:

    class Rows(np.ndarray[tuple[int], np.dtype[np.void]], Generic[F]):
        """What a batch handler takes, and `reserve` gives: a structured array of these messages."""

else:

    class Rows(Generic[F]):
        """What a batch handler takes, and `reserve` gives: a structured array of these messages, a numpy.ndarray."""


def numpy() -> Any:
    """The module. MissingNumPy if it is not installed."""
    try:
        import numpy as found
    except ImportError as error:
        raise MissingNumPy(str(error)) from error
    return found


@cache
def layout_of(cls: type[FixedMessage]) -> Layout:
    """Only for classes without `layout_problems`."""
    return place((field.encode_name, *kind_of(field.type)) for field in fields(cls))


def layout_text(cls: type) -> str:
    """Of a class of fixed messages; empty for others."""
    return layout_of(cls).text if is_fixed(cls) else ""


@cache
def dtype_of(cls: type[FixedMessage]) -> np.dtype[np.void]:
    layout = layout_of(cls)
    made: np.dtype[np.void] = numpy().dtype(
        {
            "names": [field.name for field in layout.fields],
            "formats": [field.format for field in layout.fields],
            "offsets": [field.offset for field in layout.fields],
            "itemsize": layout.size,
        }
    )
    return made


@cache
def record_of(cls: type[FixedMessage]) -> np.dtype[np.void]:
    """The same, whose items have the fields as attributes: NumPy's own records take ten times as long for that."""
    module = numpy()
    attributes = {field.name: property(operator.itemgetter(field.name)) for field in layout_of(cls).fields}
    record = type(cls.__name__, (module.void,), {"__slots__": (), "__module__": cls.__module__, **attributes})
    made: np.dtype[np.void] = module.dtype((record, dtype_of(cls)))
    return made


def layout_problems(cls: type[FixedMessage]) -> list[str]:
    """What keeps a class from having a layout, one text per field, starting with its name; annotations can be read."""
    found = []
    size = 0
    for field in fields(cls):
        try:
            kind_of(field.type)
        except BadField as error:
            found.append(f"{field.name}: {error}")
        else:
            if field.name == "dtype":
                found.append("dtype: the name is that of the class's NumPy type, give it another one")
            if not field.name.isascii():
                found.append(f"{field.name}: names of fields in a layout are ASCII")
            size = place([("x", *kind_of(field.type))]).size + size
    if not found and not fields(cls):
        found.append("none is declared: a row needs at least one")
    if not found and layout_of(cls).size > MOST_BYTES:
        found.append(f"{fields(cls)[-1].name}: ends at {size} bytes, and a row has at most {MOST_BYTES}")
    return found
