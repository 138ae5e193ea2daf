"""How a socket becomes a connection: looked at, handed to asyncio, TLS, handshake; all of it within a deadline."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace

from bus.streams import sockets as stream_sockets
from bus.streams.addresses import TLS, Address, PeerId, TcpAddress, UnixAddress, authenticates
from bus.streams.connection import Connection, Owner
from bus.streams.errors import ConnectionLost, HandshakeTimedOut, StreamFault, TlsFailed
from bus.streams.handshake import NONCE_BYTES, Dialogue, Terms, acceptor, connector
from bus.streams.policy import Timing


class Meetings:
    """`connections`: all whose sockets may be open, with their sockets, whether they stand or not."""

    def __init__(self, owner: Owner, terms: Terms, tls: TLS, timing: Timing, outbound_bytes: int) -> None:
        self.connections: dict[Connection, socket.socket] = {}
        self._owner = owner
        self._terms = terms
        self._tls = tls
        self._timing = timing
        self._outbound_bytes = outbound_bytes

    async def connect(self, peer: PeerId, address: Address) -> Connection:
        """A connection that stands. Raises StreamFault."""
        terms = self._terms_for(address)
        context = None if isinstance(address, UnixAddress) else self._tls.client
        host = self._tls.server_hostname or (address.host if isinstance(address, TcpAddress) else "")

        def hand_over(connection: Connection, connected: socket.socket) -> Awaitable[object]:
            loop = asyncio.get_running_loop()
            if context is None:
                return loop.create_connection(lambda: connection, sock=connected)
            return loop.create_connection(
                lambda: connection,
                sock=connected,
                ssl=context,
                server_hostname=host,
                ssl_handshake_timeout=self._timing.handshake,
                ssl_shutdown_timeout=self._timing.linger,
            )

        async def meet() -> Connection:
            secured = bool(terms.key) or authenticates(context)
            connected = await stream_sockets.connect(address, secured=secured)
            dialogue = connector(terms, secrets.token_bytes(NONCE_BYTES), peer)
            return await self._shake_hands(connected, address, dialogue, hand_over)

        return await self._in_time(meet())

    async def admit(self, connected: socket.socket, address: Address) -> Connection:
        """The same, with one who connected to `address`. The socket is closed if it raises."""
        context = None if isinstance(address, UnixAddress) else self._tls.server

        def hand_over(connection: Connection, connected: socket.socket) -> Awaitable[object]:
            loop = asyncio.get_running_loop()
            if context is None:
                return loop.connect_accepted_socket(lambda: connection, connected)
            return loop.connect_accepted_socket(
                lambda: connection,
                connected,
                ssl=context,
                ssl_handshake_timeout=self._timing.handshake,
                ssl_shutdown_timeout=self._timing.linger,
            )

        dialogue = acceptor(self._terms_for(address), secrets.token_bytes(NONCE_BYTES), self._owner.decide)
        return await self._in_time(self._shake_hands(connected, address, dialogue, hand_over))

    def forget_closed(self) -> bool:
        """Whether none is left."""
        for connection in [one for one, its_socket in self.connections.items() if its_socket.fileno() < 0]:
            del self.connections[connection]
        return not self.connections

    async def _in_time(self, meeting: Awaitable[Connection]) -> Connection:
        try:
            async with asyncio.timeout(self._timing.handshake):
                return await meeting
        except TimeoutError:
            raise HandshakeTimedOut(self._timing.handshake) from None
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or str(error)) from None
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from None

    async def _shake_hands(
        self,
        connected: socket.socket,
        address: Address,
        dialogue: Dialogue,
        hand_over: Callable[[Connection, socket.socket], Awaitable[object]],
    ) -> Connection:
        """Whenever it raises, the socket is closed, or will be by asyncio."""
        if isinstance(address, UnixAddress) and not self._terms.key:
            try:
                stream_sockets.check_user(connected)
            except BaseException:
                connected.close()
                raise
        connection = Connection(self._owner, dialogue, self._terms.max_frame_bytes, self._outbound_bytes, str(address))
        self.connections[connection] = connected
        try:
            await hand_over(connection, connected)
            await connection.standing
        except BaseException as error:
            connection.end(error if isinstance(error, StreamFault) else ConnectionLost("given up"))
            raise
        return connection

    def _terms_for(self, address: Address) -> Terms:
        """Nobody can get between the two ends of a Unix socket: frames need no seals there."""
        return replace(self._terms, sealed=bool(self._terms.key) and isinstance(address, TcpAddress))
