"""Write-back through a way to the server that carries less than the writers send."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from s3backer.errors import StoreError, VolumeInUse
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.mounts import PATIENCE, wait_until
from tests.support.servers import S3Server
from tools.fault_proxy import FaultProxy

BODY = 64 << 10
WRITERS = 16
EACH = 3


# The way is slow, whatever the server: the second one is for make soak.
@pytest.mark.parametrize("s3_server", ["seaweed", pytest.param("minio", marks=pytest.mark.soak)], indirect=True)
def test_what_does_not_fit_at_once_gets_through_one_by_one(s3_server: S3Server) -> None:
    address = urlsplit(s3_server.endpoint)
    done: list[str] = []
    with FaultProxy((address.hostname or "", address.port or 0), up=BODY * 4) as proxy:
        options = replace(s3_server.options(), endpoint_url=proxy.url, timeout=0.75)
        store = S3Store(s3_server.make_bucket(), options)

        def write(number: int) -> None:
            for turn in range(EACH):
                key = f"{number} {turn}"
                while time.monotonic() < deadline:
                    try:
                        store.put(key, bytes([number]) * BODY)
                    except StoreError:
                        continue
                    done.append(key)
                    break

        deadline = time.monotonic() + 40
        writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        store.close()
    assert len(done) == WRITERS * EACH


@contextmanager
def slow_server(received: list[int]) -> Iterator[str]:
    """A server that reads some 1.3 MB a second, answers what is whole, and counts the bytes of each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                received.append(0)
                with connection, suppress(OSError):
                    while received[-1] < BODY_OF_SLOW and (data := connection.recv(65536)):
                        received[-1] += len(data)
                        time.sleep(0.05)
                    if received[-1] >= BODY_OF_SLOW:
                        connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            server.join(PATIENCE)


BODY_OF_SLOW = 8 << 20


def test_an_upload_ends_with_the_lease() -> None:
    """The server has looked at its signature when it began, and would take it whenever it is whole."""
    received: list[int] = []
    with slow_server(received) as url:
        store = S3Store("bucket", StoreOptions(endpoint_url=url, access_key="a", secret_key="s", region="r"))
        ends = time.monotonic() + 2.0

        def ask(wait: bool) -> float:
            if (left := ends - time.monotonic()) <= 0:
                raise VolumeInUse("the lease has ended")
            return left

        store.fence.put_up("token", ask)
        with pytest.raises(VolumeInUse, match="the lease has ended"):
            store.put("block", bytes(BODY_OF_SLOW))
        assert ends <= time.monotonic()
        # What was in the buffers is gone, too.
        wait_until(lambda: len(received) == 1, "one connection")
        time.sleep(1)
        assert received[0] < BODY_OF_SLOW
        # One whose lease is renewed goes on.
        asked: list[bool] = []

        def renewed(wait: bool) -> float:
            asked.append(wait)
            return 0.5

        store.fence.put_up("token", renewed)
        store.put("block", bytes(BODY_OF_SLOW))
        assert len(asked) > 2
        store.close()
