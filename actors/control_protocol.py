"""What the control socket of a system and its clients say to each other. Pure.

    frame      length of what follows (4 bytes, big endian), then one JSON object
    client     {"version": 1, "command": "restart", "arguments": {"worker": "stats"}}
    server     {"kind": "taken"}                              at once, then twice a second while it is under way
               {"kind": "done", "value": {...}}               or
               {"kind": "refused", "error": "unknown-worker", "text": "...", "known": [...]}

One request a connection; after the answer the server closes it. So a client that hears nothing for longer than
`SILENCE` knows that nobody is listening, however long the command takes. A request of a newer protocol and an unknown
command are refused with a text that says what is understood. A field that is not known is ignored, a new one has a
default: within one version both sides may be older or newer.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from actors.errors import RingleaderError

PROTOCOL: Final = 1
MAX_REQUEST: Final = 64 * 1024
MAX_ANSWER: Final = 16 * 1024 * 1024
SIGN_EVERY: Final = 0.5  # seconds between two signs of life
SILENCE: Final = 3.0  # seconds without one, after which a client gives up
LENGTH: Final = struct.Struct("!I")

# Why a request was refused. Kept as text: a client may meet one that is younger than itself.
MALFORMED: Final = "malformed"
NEWER: Final = "newer-protocol"
UNKNOWN_COMMAND: Final = "unknown-command"
BAD_ARGUMENTS: Final = "bad-arguments"
UNKNOWN_WORKER: Final = "unknown-worker"
OTHER_USER: Final = "other-user"
BUSY: Final = "busy"
ENDING: Final = "ending"
NOT_IN_TIME: Final = "not-in-time"
FAILED: Final = "failed"


class Refused(RingleaderError):
    """A command was refused, or has failed. `error` is for programs; `known` are the names that would have done."""

    def __init__(self, error: str, text: str, known: tuple[str, ...] = ()) -> None:
        super().__init__(error, text, known)
        self.error, self.text, self.known = error, text, tuple(known)

    def __str__(self) -> str:
        return self.text


class BadFrame(RingleaderError):
    """What came is not a frame of this protocol."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return self.what


# ---------------------------------------------------------------------------------------------------- the envelope
class Request(msgspec.Struct, frozen=True):
    version: int
    command: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class Taken(msgspec.Struct, frozen=True, tag="taken", tag_field="kind"):
    """It was understood and is under way."""


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="kind"):
    value: msgspec.Raw


class NotDone(msgspec.Struct, frozen=True, tag="refused", tag_field="kind"):
    error: str
    text: str
    known: tuple[str, ...] = ()


Answer = Taken | Done | NotDone


class _Version(msgspec.Struct):
    version: int


_requests = msgspec.json.Decoder(Request)
_versions = msgspec.json.Decoder(_Version)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def request(command: str, arguments: msgspec.Struct) -> bytes:
    """A whole frame."""
    return frame(Request(PROTOCOL, command, msgspec.Raw(msgspec.json.encode(arguments))))


def frame(value: msgspec.Struct) -> bytes:
    body = msgspec.json.encode(value)
    return LENGTH.pack(len(body)) + body


def taken_apart(data: bytes | bytearray, limit: int) -> bytes | None:
    """The body of the frame that `data` begins with; None if it is not all there yet. Raises BadFrame."""
    if len(data) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack_from(data)
    if size > limit:
        raise BadFrame(f"a frame says that it has {size} bytes, at most {limit} are allowed")
    return bytes(data[LENGTH.size : LENGTH.size + size]) if len(data) >= LENGTH.size + size else None


def read_request(body: bytes) -> Request:
    """Raises Refused, with what to answer."""
    try:
        version = _versions.decode(body).version  # first: what else a newer request holds is not ours to judge
        if version > PROTOCOL:
            raise Refused(
                NEWER,
                f"the request speaks protocol {version}, this system speaks {PROTOCOL}: "
                "use the `ringleader` that it was started with",
            )
        return _requests.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(MALFORMED, f"the request cannot be read: {error}") from None


def read_answer(body: bytes) -> Answer:
    try:
        return _answers.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(f"the answer cannot be read: {error}") from None


# ---------------------------------------------------------------------------------------------------- the commands
class Empty(msgspec.Struct, frozen=True):
    """Nothing to say."""


class OnWorker(msgspec.Struct, frozen=True):
    """restart, drain, pause, resume. Without `wait` it is answered as soon as the supervisor was asked."""

    worker: str
    wait: bool = True
    timeout_seconds: float = 60.0


class WorkerChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`outcome` is asked, restarted, drained, paused or resumed. `pid` is None between two incarnations."""

    worker: str
    outcome: str
    pid: int | None
    epoch: int
    seconds: float


class StopSystem(msgspec.Struct, frozen=True):
    now: bool = False


class Stopping(msgspec.Struct, frozen=True):
    """The system was asked to end. `state` is what it did until then."""

    state: str


class AskStacks(msgspec.Struct, frozen=True):
    """Of one worker; None: of the supervisor's own process."""

    worker: str | None = None


class Stacks(msgspec.Struct, frozen=True):
    pid: int | None
    text: str


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int | None
    state: str
    epoch: int
    paused: bool


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """`loop_silent_seconds`: since the supervisor's loop has last turned; None before its first turn."""

    system: str
    run_id: str
    pid: int
    protocol: int
    state: str
    loop_silent_seconds: float | None
    workers: tuple[WorkerInfo, ...]
