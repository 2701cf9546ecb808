"""A store that talks to a ``NastyServer``: the parts that several tests have in common."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from tests.support.nasty import NastyServer, Step, fault, reply

ACCESS, SECRET, TOKEN = "AKIDEXAMPLE123", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session//token+value=="
#: The clock of these stores, in seconds since 1970.
NOW = 1_800_000_000.0
A_ETAG = '"0cc175b9c0f1b6a831c399e269772661"'  # of the body "a"
OK = reply(200, "a", ETag=A_ETAG)
PUT_OK = reply(200, ETag=A_ETAG)
NO_KEY = fault(404, "NoSuchKey")
NO_BUCKET = fault(404, "NoSuchBucket")
EMPTY_LIST = reply(200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
CALLS: dict[str, Callable[[S3Store], object]] = {
    "get": lambda store: store.get("key"),
    "head": lambda store: store.head("key"),
    "put": lambda store: store.put("key", b"a"),
    "put new": lambda store: store.put("key", b"a", if_none_match=True),
    "delete": lambda store: store.delete("key"),
    "list": lambda store: store.list("p/"),
}
BARE_404 = reply(404)


def options_for(url: str | None, **options) -> StoreOptions:
    """Return options that need no configuration and give up at the first failure."""
    given = {"access_key": ACCESS, "secret_key": SECRET, "region": "eu-test-1", "timeout": 10.0, "patience": 0.0}
    return StoreOptions(endpoint_url=url, **{**given, **options})


@contextmanager
def talk(*script: bytes | Step, tls: ssl.SSLContext | None = None, **options) -> Iterator[tuple[S3Store, NastyServer]]:
    """Start a server with this script and a store that uses it."""
    with NastyServer(*script, tls=tls) as server:
        store = S3Store("bucket", options_for(server.url, **options), clock=lambda: NOW)
        try:
            yield store, server
        finally:
            store.close()
