"""The runtime: handlers, messages, topologies, and the systems that run them.

    from actors import Handler, Message, State, Topology, handle

`SEMANTICS.md` beside this file is the page of promises.

A name is imported when it is first asked for: a worker needs a third of this, and every fork server imports it anew.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.codecs import JSON, PICKLE, RAW, Codec
    from actors.errors import (
        BadMessage,
        BadState,
        CodecRefused,
        LayoutMismatch,
        MessageTooLarge,
        MissingNumPy,
        NotRunning,
        Problem,
        RingleaderError,
        TooManyRows,
        TopologyError,
        UnroutedMessage,
        ViewEscaped,
    )
    from actors.exits import ExitStatus
    from actors.fixed import FixedMessage, Rows, Size
    from actors.handler import Handler, HandlerSpec, handle
    from actors.log_format import JsonFormatter, TextFormatter
    from actors.message import Message, State
    from actors.system import System
    from actors.system_errors import (
        AskFailed,
        AskTimeout,
        BadReply,
        HandlerFailed,
        NothingToReply,
        Overridden,
        RingsDoNotFit,
        SendTimeout,
        StartFailed,
        SystemClosed,
        TopologyChanged,
        UnknownHandler,
        UnknownWorker,
    )
    from actors.table import Table
    from actors.topology import Topology

__all__ = [
    "JSON",
    "PICKLE",
    "RAW",
    "AskFailed",
    "AskTimeout",
    "BadMessage",
    "BadReply",
    "BadState",
    "Codec",
    "CodecRefused",
    "ExitStatus",
    "FixedMessage",
    "Handler",
    "HandlerFailed",
    "HandlerSpec",
    "JsonFormatter",
    "LayoutMismatch",
    "Message",
    "MessageTooLarge",
    "MissingNumPy",
    "NotRunning",
    "NothingToReply",
    "Overridden",
    "Problem",
    "RingleaderError",
    "RingsDoNotFit",
    "Rows",
    "SendTimeout",
    "Size",
    "StartFailed",
    "State",
    "System",
    "SystemClosed",
    "Table",
    "TextFormatter",
    "TooManyRows",
    "Topology",
    "TopologyChanged",
    "TopologyError",
    "UnknownHandler",
    "UnknownWorker",
    "UnroutedMessage",
    "ViewEscaped",
    "handle",
]

_HOMES = {
    "actors.codecs": (
        "JSON",
        "PICKLE",
        "RAW",
        "Codec",
    ),
    "actors.errors": (
        "BadMessage",
        "BadState",
        "CodecRefused",
        "LayoutMismatch",
        "MessageTooLarge",
        "MissingNumPy",
        "NotRunning",
        "Problem",
        "RingleaderError",
        "TooManyRows",
        "TopologyError",
        "UnroutedMessage",
        "ViewEscaped",
    ),
    "actors.exits": ("ExitStatus",),
    "actors.fixed": (
        "FixedMessage",
        "Rows",
        "Size",
    ),
    "actors.handler": (
        "Handler",
        "HandlerSpec",
        "handle",
    ),
    "actors.log_format": (
        "JsonFormatter",
        "TextFormatter",
    ),
    "actors.message": (
        "Message",
        "State",
    ),
    "actors.system": ("System",),
    "actors.system_errors": (
        "AskFailed",
        "AskTimeout",
        "BadReply",
        "HandlerFailed",
        "NothingToReply",
        "Overridden",
        "RingsDoNotFit",
        "SendTimeout",
        "StartFailed",
        "SystemClosed",
        "TopologyChanged",
        "UnknownHandler",
        "UnknownWorker",
    ),
    "actors.table": ("Table",),
    "actors.topology": ("Topology",),
}

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # so that a name which does not exist is still told by a type checker

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
