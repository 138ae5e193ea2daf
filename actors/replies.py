"""How an answer travels back to who asked. Pure.

body     :=  request answer | request failure | request outcome        told apart by the record's flags
request  :=  u64, little endian: the sequence number of the question on its own edge, which no other message has
answer   :=  MessagePack [class of the message, message]
failure  :=  MessagePack [handler, type of the question, reason]
outcome  :=  MessagePack [why not, ...]                  of a command to the worker; an empty text for what was done
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from actors.codec import RunCodec
from actors.codec_runs import run_codec
from actors.plan import Plan
from actors.system_errors import AskFailed

_REQUEST_BYTES = 8


def type_key(type_: type) -> str:
    """How an answer names its class."""
    return f"{type_.__module__}:{type_.__qualname__}"


def pack_answer(request: int, message: Any, codec: RunCodec) -> bytes:
    """Raises BadMessage for a value that the asking side would not accept."""
    body = codec.encode_one(message)
    codec.check_run(codec.join([body]))
    return _request(request) + msgspec.msgpack.encode((type_key(type(message)), msgspec.Raw(body)))


def pack_failure(request: int, handler: str, type_name: str, reason: str) -> bytes:
    return _request(request) + msgspec.msgpack.encode((handler, type_name, reason))


def request_of(body: bytes) -> int:
    return int.from_bytes(body[:_REQUEST_BYTES], "little")


def read_answer(body: bytes, resolve: Callable[[str], type], plan: Plan) -> Any:
    """Raises BadReply, from `resolve`, for an unknown class, and msgspec.MsgspecError, BadRecord or CodecRefused for
    what is not an answer."""
    key, raw = msgspec.msgpack.decode(body[_REQUEST_BYTES:], type=tuple[str, msgspec.Raw])
    return run_codec(plan, resolve(key)).decode_one(memoryview(raw))


def read_failure(body: bytes) -> AskFailed:
    return AskFailed(*msgspec.msgpack.decode(body[_REQUEST_BYTES:], type=tuple[str, str, str]))


def pack_outcome(request: int, problems: Sequence[str]) -> bytes:
    return _request(request) + msgspec.msgpack.encode(problems)


def read_outcome(body: bytes) -> list[str]:
    """Raises msgspec.MsgspecError for what is none."""
    return msgspec.msgpack.decode(body[_REQUEST_BYTES:], type=list[str])


def _request(request: int) -> bytes:
    return request.to_bytes(_REQUEST_BYTES, "little")
