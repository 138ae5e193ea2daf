"""The runtime: handlers, messages, topologies, and the systems that run them.

    from actors import Handler, Message, State, Topology, handle

`SEMANTICS.md` beside this file is the page of promises.
"""

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
