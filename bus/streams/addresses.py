"""Where a stream transport listens and connects, who takes part, and what counts as secure. Pure.

An address within this machine is a Unix socket or a literal loopback IP (127.0.0.0/8, ::1), or the name localhost,
which is looked at once more when it has been resolved. Everything else is beyond loopback.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from typing import TypeAlias

PeerId: TypeAlias = int | str
"""0 <= int < 2**64, or a str of 1 to 255 bytes in UTF-8."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket file, in a directory that only its user can write to."""

    path: str

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path:
            raise ValueError(f"{self.path!r} is not the path of a socket file")

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Port 0, when listening: any that is free."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("no host; all interfaces are 0.0.0.0 or ::")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"{self.port} is not a port")

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


Address: TypeAlias = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class TLS:
    """For all TCP addresses: `server` where we listen, `client` where we connect. Unix sockets go without.

    A context authenticates if its verify_mode is CERT_REQUIRED; a server's then asks its clients for certificates.
    `server_hostname` is what the certificates of the peers are checked against; empty: the host of each address.
    """

    server: ssl.SSLContext | None = None
    client: ssl.SSLContext | None = None
    server_hostname: str = ""


def is_loopback_ip(text: str) -> bool:
    """Of a literal IP address; anything else is not."""
    try:
        return ipaddress.ip_address(text.split("%", 1)[0]).is_loopback
    except ValueError:
        return False


def stays_here(address: Address) -> bool:
    """As far as can be told without resolving names."""
    return isinstance(address, UnixAddress) or address.host.lower() == "localhost" or is_loopback_ip(address.host)


def authenticates(context: ssl.SSLContext | None) -> bool:
    return context is not None and context.verify_mode == ssl.CERT_REQUIRED
