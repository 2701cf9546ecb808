"""An HTTP proxy for tests: opens tunnels and passes requests on, always to one server, whatever host is asked for."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class HTTPProxy:
    """Listens on 127.0.0.1 from the beginning of its ``with`` block to the end.

    ``heads`` are the first heads that came on each connection; ``answer`` refuses tunnels with these bytes.
    """

    def __init__(self, port: int, *, answer: bytes = b"HTTP/1.1 200 Go on\r\n\r\n") -> None:
        self.heads: list[str] = []
        self._port = port
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._open]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self._open.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            self._open.append(server)
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            self.heads.append(head.decode("latin-1"))
            if head.startswith(b"CONNECT"):
                client.sendall(self._answer)
                if b" 200 " not in self._answer:
                    client.close()
                    return
            else:
                server.sendall(head)
            back = threading.Thread(target=_copy, args=(server, client))
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
