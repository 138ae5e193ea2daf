"""What the service manager has told this program in its environment. It is for the supervisor only: workers, and what
they start, must not notify in our name. So it is taken out before the first process is launched that inherits it, which
is when little else is imported yet.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID = VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def taken(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Those that there are; they are in the environment no more."""
    return {name: environment.pop(name) for name in VARIABLES if name in environment}
