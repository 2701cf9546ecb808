"""Write-back through a way to the server that carries less than the writers send."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from s3backer.errors import StoreError
from s3backer.stores.s3 import S3Store
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
