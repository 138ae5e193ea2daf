"""The run: consecutive messages of one route in one record, and how it is encoded, checked and read.

    record   :=  header body
    header   :=  first sequence number u64 | count u32 | route u16 | flags u16      (little endian, 16 bytes)
    body     :=  MessagePack array of `count` messages, each the array of its fields

Pure. What another process wrote is checked before it is believed: a record that does not hold what its header says is
BadRecord. A message that cannot be encoded, or would not be accepted by the receiver, is BadMessage, and the sender is
at fault; since the same strict decoder stands on both sides, what passed `check_run` is accepted there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import msgspec
from msgspec.structs import fields

from actors.beside import Part, parts_of
from actors.errors import BadMessage, BadRecord, BadState, CodecRefused, MessageTooLarge
from actors.message import Message, State, can_encode_late, type_name
from actors.packing import Packing, packing, plain_types
from actors.sealed import is_sealed, unseal
from actors.tickets import Large, Ticket, ticket_in

RUN = struct.Struct("<QIHH")
FLAG_ASK = 1  # the sender waits for a reply
FLAG_REPLY = 2  # this is one
FLAG_ERROR = 4  # and it tells of a failure
FLAG_COMMAND = 8  # not for handlers but for their worker, from the gateway; with FLAG_REPLY: what has become of it
FLAG_REQUEUED = 16  # it was a dead letter before
FLAG_CLAIM = 32  # a run of one message, which is not in it: it is a ticket (`actors.tickets`)

MAX_ROUTES = 1 << 16
MAX_COUNT = (1 << 32) - 1
SUMMARY = 80  # characters of a value that an error carries along

pack_header = RUN.pack

_encode = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def unpack_header(record: bytes | memoryview) -> tuple[int, int, int, int]:
    """(first sequence number, count, route, flags)"""
    if len(record) < RUN.size:
        raise BadRecord(f"shorter than the {RUN.size} bytes of its header", len(record))
    return RUN.unpack_from(record)


def array_header(count: int) -> bytes:
    """How a MessagePack array of `count` elements begins."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _no_claims(ticket: Ticket) -> memoryview:
    raise BadRecord("a ticket, and nobody to redeem it", ticket.size)


class RunCodec:
    """Encodes and decodes runs of one message class: messages are of exactly this class, not of a subclass.

    `late` tells whether a message may be kept as it is and encoded at the commit (`encode_run`); otherwise it is
    encoded at `send` (`encode_one`) and the encodings are joined at the commit (`join`). `redeem` gives the message
    that a ticket stands for.
    """

    redeem: Callable[[Ticket], memoryview] = staticmethod(_no_claims)

    def __init__(self, type_: type[Message]) -> None:
        self.type = type_
        self.type_name = type_name(type_)
        self._decode = msgspec.msgpack.Decoder(list[type_]).decode  # type: ignore[valid-type]
        self._decode_one = msgspec.msgpack.Decoder(type_).decode

    @cached_property
    def late(self) -> bool:
        return can_encode_late(self.type)

    @cached_property
    def _plain(self) -> Callable[[Sequence[Any]], bool] | None:
        """Made at the first send: whoever only receives such messages has no use for it."""
        return _plain_check(self.type)

    @cached_property
    def packing(self) -> Packing | None:
        """For a packer of messages of this class, where there may be one."""
        return packing(self.type)

    @cached_property
    def _parts(self) -> Callable[[Any], tuple[Part, ...] | None] | None:
        return parts_of(self.type)

    def encode_run(self, messages: Sequence[Message]) -> bytes:
        """The body of a run. BadMessage if one of them cannot be encoded."""
        try:
            return _encode(messages)
        except Exception as error:
            for index, message in enumerate(messages):
                try:
                    _encode(message)
                except Exception as cause:
                    raise self._unencodable(index, message, cause) from cause
            raise BadMessage(0, self.type_name, "", f"{type(error).__name__}: {error}") from error

    def check_run(self, body: bytes, messages: Sequence[Message] | None = None) -> None:
        """Prove that the receiver will accept this body; BadMessage names the first message that does not fit its type.

        With the messages it was encoded from, the proof is usually quicker: a field whose value is exactly of its
        declared plain type needs no decoding.
        """
        if messages is not None and self._plain is not None and self._plain(messages):
            return
        try:
            self._decode(body)
        except Exception as error:
            raise self._misfit(body, error) from error

    def encode_one(self, message: Message) -> bytes:
        """One message as it is now, for `join`. Like `encode_run`, it does not check what the receiver will."""
        try:
            return _encode(message)
        except Exception as error:
            raise self._unencodable(0, message, error) from error

    @staticmethod
    def join(encoded: Sequence[bytes]) -> bytes:
        """The body of a run of messages that are encoded already."""
        if len(encoded) == 1:
            return b"\x91" + encoded[0]
        return b"".join((array_header(len(encoded)), *encoded))

    def decode_run(self, body: bytes | memoryview) -> Any:
        """The messages of a run that another process wrote, a sequence. BadRecord if it is not a run of this class."""
        try:
            return self._decode(body)
        except msgspec.MsgspecError as error:
            if is_sealed(memoryview(body)[1:]):  # a ticket, or the first of another codec's
                return [self._decode_any(memoryview(one)) for one in _split(body)]
            raise BadRecord(f"not a run of {self.type_name}: {error}", len(body)) from error

    def decode_one(self, encoded: bytes | memoryview | Large) -> Any:
        """One message, as `encode_one` or `encode_alone` made it, or as it stands in a run."""
        if not isinstance(encoded, Large):
            try:
                return self._decode_one(encoded)
            except msgspec.MsgspecError as error:
                # Kept no longer than this: it would hold this frame, and that the memory of a claim.
                if not is_sealed(encoded):
                    raise BadRecord(f"not a {self.type_name}: {error}", len(encoded)) from error
        return self._decode_any(encoded)

    def _decode_any(self, encoded: bytes | memoryview | Large) -> Any:
        codec, data = self.payload(encoded)
        if codec:
            raise CodecRefused(self.type_name, codec, "msgpack") from None
        return self.decode_one(data)

    def payload(self, encoded: bytes | memoryview | Large) -> tuple[str, bytes | memoryview]:
        """The name of the codec that made this message (empty for MessagePack), and what it made of it."""
        if isinstance(encoded, Large):
            return encoded.codec, memoryview(encoded.whole()).toreadonly()
        ticket = ticket_in(encoded)
        if ticket is not None:
            return ticket.codec, self.redeem(ticket)
        return unseal(encoded) if is_sealed(encoded) else ("", encoded)

    def encode_alone(self, message: Any, in_ring: int, largest: int) -> bytes | Large:
        """One message, checked as `check_run` does; Large if it is over `in_ring` bytes. Raises MessageTooLarge.

        The parts of what is Large may be the sender's own buffers, which can change.
        """
        if self._parts is not None and self._plain is not None:
            parts = self._parts(message)
            if parts and in_ring < sum(map(len, parts)) <= largest and self._plain([message]):
                return Large("", parts)
        encoded = self.encode_one(message)
        if len(encoded) > max(in_ring, largest):
            raise MessageTooLarge(self.type_name, len(encoded), max(in_ring, largest))
        if self._plain is None or not self._plain([message]):
            try:
                self._decode_one(encoded)
            except Exception:
                self.check_run(self.join([encoded]))  # tells what is wrong
        return encoded if len(encoded) <= in_ring else Large("", (encoded,))

    def each(self, messages: Any) -> Any:
        """What `decode_run` returned, one by one."""
        return messages

    def calling(self, method: Callable[[Any], object], batch: bool) -> Callable[[Any], object]:
        """What is called with each of what `decode_run` returned, or with a list of them, for a handler's method."""
        return method

    def split_run(
        self, items: Sequence[Message] | Sequence[bytes], max_bytes: int, max_message_bytes: int | None = None
    ) -> list[tuple[int, bytes]]:
        """(count, body) for the same messages in the same order, each body at most `max_bytes`; few, by halving.

        The items are messages, or all encodings of messages. One that is over the limit alone is MessageTooLarge, with
        its index among the items. Given `max_message_bytes`, that is the limit of a single message instead: one that
        is over `max_bytes`, but not over this, is a run of its own.
        """
        if max_message_bytes is not None and max_message_bytes < max_bytes:
            for index, item in enumerate(items):
                size = len(item if isinstance(item, bytes) else self.encode_one(item))  # type: ignore[arg-type]
                if size > max_message_bytes:
                    raise MessageTooLarge(self.type_name, size, max_message_bytes, index)
        bodies: list[tuple[int, bytes]] = []
        pending = [(0, items)] if items else []
        while pending:
            at, part = pending.pop()
            body = self.join(part) if isinstance(part[0], bytes) else self.encode_run(part)  # type: ignore[arg-type]
            if len(body) <= max_bytes:
                bodies.append((len(part), body))
            elif len(part) == 1:
                size = len(body) - len(array_header(1))
                if max_message_bytes is None or size > max_message_bytes:
                    raise MessageTooLarge(self.type_name, size, max_message_bytes or max_bytes, at)
                bodies.append((1, body))
            else:
                middle = len(part) // 2
                pending += [(at + middle, part[middle:]), (at, part[:middle])]
        return bodies

    def _unencodable(self, index: int, message: Message, error: Exception) -> BadMessage:
        for field in self.type.__struct_fields__:
            value = getattr(message, field, None)
            try:
                _encode(value)
            except Exception as cause:
                return BadMessage(index, self.type_name, summary(value), _told(cause), field)
        return BadMessage(index, self.type_name, summary(message), _told(error))

    def _misfit(self, body: bytes, error: Exception) -> BadMessage:
        try:
            encoded = _split(body)
        except Exception:
            return BadMessage(0, self.type_name, summary(body), _told(error))
        for index, one in enumerate(encoded):
            try:
                self._decode_one(one)
            except Exception as cause:
                reason, steps = _told(cause), ()
                if match := _PATH.search(reason):
                    reason, steps = reason[: match.start()], tuple(_STEP.findall(match[1]))
                field, value = _locate(self.type, steps, msgspec.msgpack.decode(one))
                return BadMessage(index, self.type_name, summary(value), reason, field)
        return BadMessage(0, self.type_name, summary(body), _told(error))


class StateCodec:
    """Encodes and decodes one handler's durable state."""

    def __init__(self, type_: type[State]) -> None:
        self.type = type_
        self._decode = msgspec.msgpack.Decoder(type_).decode

    def fresh(self) -> Any:
        """The state at the first start."""
        return self.type()

    def encode(self, state: State) -> bytes:
        """The state as it would be written, without a check."""
        try:
            return _encode(state)
        except Exception as error:
            raise BadState(self.type.__name__, _told(error)) from error

    def check(self, data: bytes) -> None:
        """Prove that this can be read back."""
        try:
            self._decode(data)
        except Exception as error:
            raise BadState(self.type.__name__, _told(error)) from error

    def decode(self, data: bytes) -> Any:
        """What was written, also by an earlier version of the class; BadRecord if it does not fit it any more."""
        try:
            return self._decode(data)
        except Exception as error:
            raise BadRecord(f"not a {self.type.__name__}: {_told(error)}", len(data)) from error


def summary(value: object) -> str:
    """A short picture of a value, whatever its own repr does."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= SUMMARY else f"{text[: SUMMARY - 3]}..."


_PATH = re.compile(r" - at `\$((?:\[[^\]]*\]|\.[^.\[`]*)*)`$")
_STEP = re.compile(r"\[([^\]]*)\]|\.([^.\[`]*)")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, (msgspec.MsgspecError, TypeError)) else f"{type(error).__name__}: {error}"


def _locate(type_: type[msgspec.Struct], steps: tuple[tuple[str, str], ...], value: Any) -> tuple[str, Any]:
    """The path in field names, and the value there, for the steps by which msgspec tells a place in a message."""
    text = ""
    for number, (index, name) in enumerate(steps):
        if number == 0 and index.isdigit() and type_.__struct_config__.array_like:
            place = int(index) - (type_.__struct_config__.tag is not None)
            text = type_.__struct_fields__[place] if 0 <= place < len(type_.__struct_fields__) else f"[{index}]"
        else:
            text += f"[{index}]" if index else f".{name}"
        try:
            value = value[int(index)] if index.isdigit() else value[name]
        except (LookupError, TypeError, ValueError):
            value = None  # `[...]`: somewhere in a dict
    return text.removeprefix("."), value


def _plain_check(type_: type[msgspec.Struct]) -> Callable[[Sequence[Any]], bool] | None:
    """A function that is true if every field of messages of this class is exactly of its declared type, or None.

    For these types an encoding that succeeds is accepted by the decoder, so nothing has to be decoded to prove it. It
    is written as source, as dataclasses are, since this loop runs once per message sent.
    """
    if hasattr(type_, "__post_init__"):
        return None
    names: dict[str, Any] = {}

    def named(cls: type) -> str:
        name = f"class{len(names)}"
        names[name] = cls
        return name

    tests = []
    for field in fields(type_):
        leaves = plain_types(field.type)
        if leaves is None:
            return None
        first, *others = [named(leaf) for leaf in leaves]
        if others:
            either = "".join(f" or kind is {other}" for other in others)
            tests.append(f"((kind := type(message.{field.name})) is {first}{either})")
        else:
            tests.append(f"type(message.{field.name}) is {first}")
    if not tests:
        return None
    parameters = ", ".join(f"{name}={name}" for name in names)  # a local name is the quickest to look up
    source = "\n".join(
        [
            f"def plain(messages, type=type, {parameters}):",
            "    for message in messages:",
            f"        if not ({' and '.join(tests)}):",
            "            return False",
            "    return True",
        ]
    )
    exec(source, names)
    check: Callable[[Sequence[Any]], bool] = names["plain"]
    return check
