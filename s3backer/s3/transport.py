"""One attempt of one request over urllib3's connection pool.

``Transport.send`` returns a whole answer, or raises Failure. Connecting, sending and receiving take at most
``timeout`` seconds each, however slowly the bytes drip. Content encodings and redirects are left as they are.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    InsecureRequestWarning,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from s3backer.errors import StoreError, UsageError
from s3backer.s3 import messages
from s3backer.s3.messages import Place
from s3backer.s3.responses import Answer
from s3backer.s3.retries import Failure
from s3backer.stores.base import Buffer

_CONNECT_SECONDS = 10.0
#: How often a sender that waits for a connection looks whether the pool was closed.
_LOOK_SECONDS = 1
#: Bytes read at once of an answer that does not say how long it is.
_PIECE = 1 << 16


class _DeadlineReader(io.RawIOBase):
    """Reads a socket, but only up to a deadline. The socket's own time-out begins anew with every byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        timeout = sock.gettimeout()
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineSocket:
    """As much of a socket as an HTTP response uses."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._socket), 65536)


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(_DeadlineSocket(sock), *arguments, **options)  # type: ignore[arg-type]  # only makefile


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _DeadlineResponse

    def __init__(self, *arguments: Any, send_seconds: float, on_connect: Callable[[], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._send_seconds = send_seconds
        self._on_connect = on_connect

    def connect(self) -> None:
        self._on_connect()
        super().connect()

    def send(self, data: Any) -> None:
        # urllib3 would give the sending the time-out of the connecting.
        if self.sock is None:
            self.connect()
        deadline = time.monotonic() + self._send_seconds
        view = memoryview(data).cast("B")
        while view:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self.sock.settimeout(left)
            view = view[self.sock.send(view) :]


class _HTTPSConnection(_HTTPConnection, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class Transport:
    """Connections to one host, at most ``connections`` at once; further senders wait for a free one."""

    def __init__(
        self,
        place: Place,
        *,
        scheme: str,
        host: str,
        port: int | None,
        timeout: float,
        connections: int,
        type_of_service: int | None = None,
        tls: ssl.SSLContext | None,
        on_connect: Callable[[], None],
    ) -> None:
        self._place = place
        self._timeout = urllib3.Timeout(connect=min(timeout, _CONNECT_SECONDS), read=timeout)
        self._seconds = timeout
        more: dict[str, Any] = {
            "maxsize": connections,
            "block": True,
            "send_seconds": timeout,
            "on_connect": on_connect,
        }
        if type_of_service is not None:
            usual = urllib3.connection.HTTPConnection.default_socket_options
            more["socket_options"] = [*usual, (socket.IPPROTO_IP, socket.IP_TOS, type_of_service)]
        self._pool: urllib3.HTTPConnectionPool
        if scheme == "https":
            self._pool = _HTTPSPool(host, port, ssl_context=tls, **more)
        else:
            self._pool = _HTTPPool(host, port, **more)

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: Buffer | None, *, at_most: int | None = None
    ) -> Answer:
        """Send a request and return the answer. Raises LongAnswer for more than ``at_most`` bytes, and Failure."""
        answer = None
        while answer is None:
            try:
                answer = self._pool.urlopen(
                    method,
                    target,
                    body=body,  # type: ignore[arg-type]  # any buffer will do
                    headers=headers,
                    retries=False,
                    redirect=False,
                    timeout=self._timeout,
                    pool_timeout=_LOOK_SECONDS,
                    preload_content=False,
                    decode_content=False,
                )
                received = _read(answer, at_most)
            except EmptyPoolError:
                # All connections are in use. Once the pool is closed they do not come back to it.
                continue
            except HTTPError as error:
                raise self._failure(error) from error
        lengths = answer.headers.get("Content-Length"), answer.headers.get("Transfer-Encoding")
        if method != "HEAD" and lengths == (None, None) and answer.status not in (204, 304):
            # It ended with the connection, so that nobody can tell whether it is whole.
            raise self._broken("the answer does not say how long it is")
        return Answer(answer.status, answer.headers, received)

    def close(self) -> None:
        """Close the connections that are not in use; those in use close when their request ends."""
        self._pool.close()

    def _failure(self, error: HTTPError) -> Failure:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return self._unreachable(
                f"its certificate is not trusted ({cause.verify_message})",
                "Give the certificate of its authority with --ca-bundle or AWS_CA_BUNDLE.",
                retried=False,
            )
        match error:
            case NameResolutionError():
                return self._unreachable(
                    "the host name is unknown",
                    "Check the endpoint URL and the name service.",
                    counted_as="host unknown",
                )
            # A kind of ConnectTimeoutError in urllib3, whatever the reason.
            case NewConnectionError():
                return self._unreachable(
                    f"{_system_error(error) or 'no connection'}",
                    "Check the endpoint URL, and that the server runs.",
                    counted_as="connect failed",
                )
            case ConnectTimeoutError():
                return self._unreachable(
                    f"no connection within {self._timeout.connect_timeout:g} s",
                    "Check the endpoint URL, the network and the firewall.",
                    counted_as="timeout",
                )
            case LocationValueError():
                return self._unreachable(
                    "its host name is not a valid one",
                    "Check the endpoint URL and the bucket's name.",
                    retried=False,
                    counted_as="host unknown",
                )
            case SSLError():
                return self._unreachable(
                    "TLS failed",
                    "Check that the endpoint speaks TLS on this port: https:// in its URL may have to be http://.",
                    unsettled=True,
                )
            case _ if isinstance(error, ReadTimeoutError) or isinstance(error.__context__, TimeoutError):
                return self._unreachable(
                    f"no whole answer within {self._seconds:g} s",
                    "Check the network, or allow more time with --timeout.",
                    unsettled=True,
                    counted_as="timeout",
                )
            case _:
                return self._broken(_system_error(error) or "the connection broke off")

    def _broken(self, problem: str) -> Failure:
        hint = "Check the network and the server; the request was sent and may have taken effect."
        return self._unreachable(problem, hint, unsettled=True)

    def _unreachable(self, problem: str, hint: str, *, retried: bool = True, **more: Any) -> Failure:
        return Failure(
            messages.unreachable(self._place, problem, hint), retried=retried, **{"unsettled": False, **more}
        )


class LongAnswer(Exception):
    """An answer has more than ``at_most`` bytes."""

    def __init__(self, at_most: int) -> None:
        super().__init__(at_most)
        self.at_most = at_most


def _read(answer: urllib3.BaseHTTPResponse, at_most: int | None) -> bytes:
    """Return the body of an answer and give its connection back. Only of a success too much can come."""
    try:
        if at_most is None or answer.status >= 300:
            return answer.data
        said = answer.headers.get("Content-Length", "")
        if said.isdecimal() and int(said) <= at_most:
            return answer.data
        body = bytearray()
        if not said:
            for piece in answer.stream(_PIECE):
                body += piece
                if len(body) > at_most:
                    break
            else:
                return bytes(body)
        answer.close()
        raise LongAnswer(at_most)
    finally:
        answer.release_conn()


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
        if isinstance(error, OSError) and error.errno:
            text = os.strerror(error.errno).lower()
        error = error.__cause__ or error.__context__
    return text
