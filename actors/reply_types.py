"""Which class a reply is of, by the name that it carries."""

from __future__ import annotations

import sys

from actors.message import Message
from actors.plan import Plan
from actors.replies import type_key
from actors.system_errors import BadReply


def reply_class(plan: Plan, name: str) -> type[Message]:
    """The class of a reply. Only what this process has defined or imported: nothing is imported for a reply."""
    for route in plan.routes:
        if route.message is not None and type_key(route.message) == name:
            return route.message
    for handler in plan.handlers:
        for known in handler.description.replies:
            if type_key(known) == name:
                return known
    module, _, qualname = name.partition(":")
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Message):
        return found
    raise BadReply(name)
