"""A store around another one that counts calls, records them, and fails or lies where a test says. Free of pytest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from s3backer.errors import StoreUnreachable
from s3backer.stores.base import ObjectStore, StoredObject

#: Methods that are requests.
CALLS = ("get", "head", "put", "delete", "list")


class FaultyStore:
    """Like ``store``, but the ``fail_at``-th request (from 1) raises, before or ``after`` it took effect.

    ``watch`` is called with (kind, key) before each request; ``alter`` may change what a GET returns.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        fail_at: int = 0,
        after: bool = False,
        watch: Callable[[str, str], None] | None = None,
        alter: Callable[[StoredObject], StoredObject] | None = None,
    ) -> None:
        self.inner = store
        self.name = store.name
        self.bucket = store.bucket
        self.place = store.place
        self.lasting = store.lasting
        self.arriving = store.arriving
        self.fence = store.fence
        self.fenced = store.fenced
        self.conditions: bool | None = store.conditions
        self.delayed = store.delayed
        self.endpoint = getattr(store, "endpoint", "")
        self.counters = store.counters
        self.calls: list[tuple[str, str]] = []
        self._fail_at = fail_at
        self._after = after
        self._watch = watch
        self._alter = alter
        self._lock = threading.Lock()

    def _call(self, kind: str, key: str, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self.calls.append((kind, key))
            failing = len(self.calls) == self._fail_at
        if self._watch:
            self._watch(kind, key)
        if failing and not self._after:
            raise StoreUnreachable("this request was chosen to fail", hint="Try again.")
        try:
            return getattr(self.inner, kind)(key, *arguments, **options)
        finally:
            if failing:
                # In place of the answer, also of one that says no.
                raise StoreUnreachable("the answer of this request was chosen to be lost", hint="Try again.")

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        found: StoredObject = self._call("get", key, at_most=at_most)
        return self._alter(found) if self._alter else found

    def get_unless(self, key: str, etag: str, *, at_most: int | None = None) -> StoredObject | None:
        found: StoredObject | None = self._call("get_unless", key, etag, at_most=at_most)
        return self._alter(found) if self._alter and found else found

    def get_range(self, key: str, start: int, length: int, **options: Any) -> Any:
        return self._call("get_range", key, start, length, **options)

    def head(self, key: str) -> Any:
        return self._call("head", key)

    def put(self, key: str, body: Any, **options: Any) -> Any:
        return self._call("put", key, body, **options)

    def put_large(self, key: str, body: Any, **options: Any) -> Any:
        return self._call("put_large", key, body, **options)

    def delete(self, key: str, **options: Any) -> None:
        self._call("delete", key, **options)

    def delete_many(self, keys: Any) -> None:
        for key in keys:
            self.delete(key)

    def list(self, prefix: str, **options: Any) -> Any:
        return self._call("list", prefix, **options)

    def settles_in(self) -> float:
        return self.inner.settles_in()

    def close(self) -> None:
        self.inner.close()

    def count(self, kind: str) -> int:
        """Return the number of requests of a kind."""
        return sum(found == kind for found, _ in self.calls)
