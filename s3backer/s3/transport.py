"""Connections to one host: made by urllib3, kept while idle, used for one exchange at a time.

``Transport.start`` sends a request and returns the exchange in which its answer comes; ``finish`` and ``race`` wait
for it. Connecting and receiving take at most ``timeout`` seconds each, however slowly the bytes drip; sending may take
ten times as long, as long as some bytes go out in each ``timeout``.
Content encodings and redirects are left as they are. What fails is a Failure that says whether the request may have
taken effect.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
)

from s3backer.errors import StoreError, UsageError
from s3backer.s3 import messages
from s3backer.s3.http1 import Answer, BadHTTP, Connection, Exchange, request_head
from s3backer.s3.messages import Place
from s3backer.s3.proxies import Proxy
from s3backer.s3.responses import printable
from s3backer.s3.retries import Failure
from s3backer.stores.base import Body

_CONNECT_SECONDS = 10.0
#: How long an unused connection is kept. Servers close theirs after some 20 s or more.
_IDLE_SECONDS = 15.0


class Transport:
    """Connections to one host; as many as there are requests under way."""

    def __init__(
        self,
        place: Place,
        *,
        scheme: str,
        host: str,
        port: int | None,
        timeout: float,
        type_of_service: int | None = None,
        tls: ssl.SSLContext | None,
        proxy: Proxy | None = None,
        on_connect: Callable[[], None],
    ) -> None:
        self._place = place
        self._connect_seconds = min(timeout, _CONNECT_SECONDS)
        self._seconds = timeout
        self._on_connect = on_connect
        self._lock = threading.Lock()
        #: The one used last is the last.
        self._idle: list[Connection] = []
        # For a store that nobody closes.
        weakref.finalize(self, _close_all, self._idle)
        self._closed = False
        self._host = host
        self._port = port
        self._more: dict[str, Any] = {"timeout": self._connect_seconds}
        if type_of_service is not None:
            usual = urllib3.connection.HTTPConnection.default_socket_options
            self._more["socket_options"] = [*usual, (socket.IPPROTO_IP, socket.IP_TOS, type_of_service)]
        if scheme == "https":
            self._more["ssl_context"] = tls
        self._proxy = proxy
        #: What goes before a target for a proxy that passes requests on, and what it wants to know.
        self._origin = "" if proxy is None or tls is not None else f"http://{host}" + (f":{port}" if port else "")
        self._for_proxy = proxy.headers if proxy is not None and self._origin else {}
        self._connection_class = (
            urllib3.connection.HTTPSConnection if scheme == "https" else urllib3.connection.HTTPConnection
        )

    def start(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None,
        *,
        leave: Callable[[], float],
        at_most: int | None = None,
    ) -> Exchange:
        """Send a request on a connection of its own; Failure if it does not go out. ``leave``: see Connection.send."""
        head = request_head(method, self._origin + target, {**headers, **self._for_proxy}, body)
        connection = self._take()
        try:
            connection.send(head, body, self._seconds, leave)
        except TimeoutError as error:
            connection.drop()
            raise self._timed_out() from error
        except (BrokenPipeError, ConnectionResetError) as error:
            # The server may have answered before it had read everything.
            return self._last_words(connection, method, at_most, error)
        except OSError as error:
            connection.close()
            raise self.failure(error, connection.reused) from error
        except BaseException:
            # It must not go out any more.
            connection.drop()
            raise
        return Exchange(connection, method, at_most, self._seconds)

    def finish(self, exchange: Exchange) -> Answer:
        """Return the answer; LongAnswer for more than ``at_most`` bytes, Failure if it does not come whole."""
        self.wait(exchange, self._seconds)
        return self.done(exchange)

    def wait(self, exchange: Exchange, seconds: float) -> bool:
        """Wait for at most ``seconds`` and return whether the answer is whole."""
        try:
            return exchange.wait(seconds)
        except BaseException as error:
            exchange.connection.drop()
            if isinstance(error, (OSError, BadHTTP)):
                raise self.failure(error, exchange.connection.reused and not exchange.begun) from error
            raise

    def race(self, exchanges: Sequence[Exchange]) -> Exchange:
        """Return the first of several exchanges whose answer is whole, and drop the others; Failure if all fail."""
        left = list(exchanges)
        error: Exception | None = None
        try:
            while left:
                for exchange in list(left):
                    try:
                        if exchange.advance():
                            left.remove(exchange)
                            return exchange
                        if time.monotonic() >= exchange.deadline:
                            raise TimeoutError("timed out")
                    except (OSError, BadHTTP) as failure:
                        error = failure
                        left.remove(exchange)
                        exchange.connection.close()
                poll = select.poll()
                for exchange in left:
                    poll.register(exchange.connection.sock, select.POLLIN)
                if left and not any(exchange.connection.pending() for exchange in left):
                    next_end = min(exchange.deadline for exchange in left)
                    poll.poll(max(0.0, next_end - time.monotonic()) * 1000 + 1)
        finally:
            for exchange in left:
                exchange.connection.close()
        assert error is not None
        raise self.failure(error) from error

    def done(self, exchange: Exchange) -> Answer:
        """Return the whole answer of an exchange and keep its connection."""
        assert exchange.answer is not None
        connection = exchange.connection
        if exchange.reusable:
            connection.reused = True
            connection.idle_since = time.monotonic()
            with self._lock:
                if not self._closed:
                    self._idle.append(connection)
                    return exchange.answer
        connection.close()
        return exchange.answer

    def close(self) -> None:
        """Close the connections that are not in use; those in use close when their request ends."""
        with self._lock:
            self._closed = True
            _close_all(self._idle)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _take(self) -> Connection:
        """Return an idle connection that still stands, or a new one."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect()
            # What can be read before anything was asked is the end of the connection, or nonsense.
            poll = select.poll()
            poll.register(connection.sock, select.POLLIN)
            if time.monotonic() - connection.idle_since < _IDLE_SECONDS and not poll.poll(0):
                return connection
            connection.close()

    def _connect(self) -> Connection:
        self._on_connect()
        proxy = self._proxy
        where = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        made: Any = self._connection_class(*where, **self._more)
        if proxy is not None and not self._origin:
            made.set_tunnel(self._host, self._port or 443, headers=proxy.headers)
        try:
            made.connect()
        except (HTTPError, OSError) as error:
            made.close()
            raise self._no_connection(error) from error
        return Connection(made.sock, made.close)

    def _last_words(self, connection: Connection, method: str, at_most: int | None, error: OSError) -> Exchange:
        exchange = Exchange(connection, method, at_most, self._seconds)
        try:
            exchange.wait(self._seconds)
        except (OSError, BadHTTP):
            connection.close()
            raise self.failure(error, connection.reused) from error
        except BaseException:
            connection.close()
            raise
        exchange.reusable = False
        return exchange

    def failure(self, error: Exception, stale: bool = False) -> Failure:
        """Return what an error after connecting means: the request was sent, in part at least.

        ``stale``: on a kept connection, on which nothing came in return.
        """
        if isinstance(error, TimeoutError):
            return self._timed_out()
        if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return self._tls_failed()
        problem = str(error) if isinstance(error, BadHTTP) else _system_error(error) or "the connection broke off"
        hint = "Check the network and the server; the request was sent and may have taken effect."
        return self._unreachable(problem, hint, unsettled=True, stale=stale)

    def _no_connection(self, error: Exception) -> Failure:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return self._unreachable(
                f"its certificate is not trusted ({cause.verify_message})",
                "Give the certificate of its authority with --ca-bundle or AWS_CA_BUNDLE.",
                retried=False,
            )
        if isinstance(cause, ssl.SSLError):
            return self._tls_failed()
        if str(error).startswith("Tunnel connection failed"):
            return self._unreachable(
                f"the proxy {self._proxy} refuses a connection to it ({printable(str(error).partition(': ')[2])})",
                "Check HTTPS_PROXY with user and password, and NO_PROXY.",
                retried=" 407 " not in str(error),
            )
        match error:
            case NameResolutionError():
                return self._unreachable(
                    "the host name is unknown" if self._proxy is None else f"the proxy's name {self._proxy} is unknown",
                    "Check the endpoint URL and the name service."
                    if self._proxy is None
                    else "Check HTTPS_PROXY and HTTP_PROXY.",
                    counted_as="host unknown",
                )
            case LocationValueError():
                return self._unreachable(
                    "its host name is not a valid one",
                    "Check the endpoint URL and the bucket's name.",
                    retried=False,
                    counted_as="host unknown",
                )
            # A kind of ConnectTimeoutError in urllib3, whatever the reason.
            case _ if isinstance(error, NewConnectionError) or not isinstance(
                error, (ConnectTimeoutError, TimeoutError)
            ):
                return self._unreachable(
                    f"{_system_error(error) or 'no connection'}{self._by_proxy()}",
                    "Check the endpoint URL, and that the server runs.",
                    counted_as="connect failed",
                )
            case _:
                return self._unreachable(
                    f"no connection within {self._connect_seconds:g} s{self._by_proxy()}",
                    "Check the endpoint URL, the network and the firewall.",
                    counted_as="timeout",
                )

    def _by_proxy(self) -> str:
        return "" if self._proxy is None else f", at its proxy {self._proxy}"

    def _tls_failed(self) -> Failure:
        return self._unreachable(
            "TLS failed",
            "Check that the endpoint speaks TLS on this port: https:// in its URL may have to be http://.",
            unsettled=True,
        )

    def _timed_out(self) -> Failure:
        return self._unreachable(
            f"no whole answer within {self._seconds:g} s",
            "Check the network, or allow more time with --timeout.",
            unsettled=True,
            counted_as="timeout",
        )

    def _unreachable(self, problem: str, hint: str, *, retried: bool = True, **more: Any) -> Failure:
        return Failure(
            messages.unreachable(self._place, problem, hint), retried=retried, **{"unsettled": False, **more}
        )


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


def tls_context(*, verify: bool, ca_bundle: str | None, spare_bundle: str) -> ssl.SSLContext:
    """Return how TLS is done: the system's authorities and those of ``spare_bundle``, or only ``ca_bundle``.

    A fresh Debian has no authorities of its own, hence the spare ones.
    """
    context = urllib3.util.create_urllib3_context()
    if not verify:
        # The user has asked for it: one warning a connection would say nothing new.
        urllib3.disable_warnings(InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        if ca_bundle:
            path = os.path.expanduser(ca_bundle)
            is_directory = os.path.isdir(path)
            context.load_verify_locations(None if is_directory else path, path if is_directory else None)
        else:
            context.load_default_certs()
            context.load_verify_locations(spare_bundle)
    except OSError as error:
        raise UsageError(
            f"the CA bundle {ca_bundle or spare_bundle} cannot be used: {error.strerror or 'no certificates in it'}",
            hint="Give a file of certificates in PEM form.",
        ) from None
    return context


def closed(place: Place) -> StoreError:
    """Return the error for a request after, or while, the store is closed."""
    return StoreError(f"s3://{place.bucket} was closed while a request waited")


def _system_error(error: BaseException | None) -> str:
    """Return the system's words for the innermost cause, such as "connection refused"."""
    text = ""
    while error is not None:
        if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
            with suppress(ValueError):
                text = os.strerror(error.errno).lower()
        error = error.__cause__ or error.__context__
    return text
