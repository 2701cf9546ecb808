"""A store in memory: the plain twin of the real ones, for tests and for trying things out.

Every call takes effect at one instant, under one lock.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from s3backer.errors import ObjectNotFound, PreconditionFailed
from s3backer.stores.base import Body, ListEntry, ListPage, ObjectInfo, ObjectRange, StoredObject
from s3backer.stores.bodies import pieces
from s3backer.stores.checks import check_key, check_listing, check_range, checked_metadata, too_large
from s3backer.stores.fence import Fence
from s3backer.telemetry.requests import RequestCounters

_T = TypeVar("_T")


class MemoryStore:
    """A bucket that lives as long as this object."""

    def __init__(self, name: str = "memory:") -> None:
        self.name = self.place = name
        self.bucket = name
        self.delayed = False
        self.lasting = self.arriving = 0.0
        self.fence = Fence()
        self.fenced = True
        self.conditions: bool | None = True
        self.counters = RequestCounters()
        self._lock = threading.Lock()
        self._objects: dict[str, StoredObject] = {}

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        """Return the object; ObjectNotFound if absent, CorruptObject if it is larger than ``at_most`` bytes."""
        check_key(key)
        return self._counted("get", lambda: self._find(key, at_most), received=lambda found: len(found.body))

    def get_unless(self, key: str, etag: str, *, at_most: int | None = None) -> StoredObject | None:
        """Return the object, or None if it has this ETag; errors as for ``get``."""
        check_key(key)

        def find() -> StoredObject | None:
            return None if self._find(key).info.etag == etag else self._find(key, at_most)

        return self._counted("get", find, received=lambda found: len(found.body) if found else 0)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> ObjectRange:
        """Return what there is of a range; ObjectNotFound, or PreconditionFailed for another ETag."""
        check_key(key)
        check_range(start, length)

        def find() -> ObjectRange:
            found = self._find(key)
            if if_match is not None and found.info.etag != if_match:
                raise PreconditionFailed(key)
            return ObjectRange(found.body[start : start + length], found.info.size)

        return self._counted("get", find, received=lambda found: len(found.body))

    def head(self, key: str) -> ObjectInfo:
        """Return the object's facts; ObjectNotFound if absent."""
        check_key(key)
        return self._counted("head", lambda: self._find(key).info)

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = "application/octet-stream",
        content_encoding: str = "",
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        """Store the object and return its ETag; PreconditionFailed if a condition does not hold."""
        check_key(key)
        self.fence.check(key)
        kept = checked_metadata(content_type, content_encoding, metadata)
        data = body if isinstance(body, bytes) else b"".join(pieces(body))
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        info = ObjectInfo(key, len(data), etag, content_type, content_encoding, kept)

        def effect() -> str:
            old = self._objects.get(key)
            if (if_none_match and old is not None) or (
                if_match is not None and (old is None or old.info.etag != if_match)
            ):
                raise PreconditionFailed(key)
            self._objects[key] = StoredObject(info, data)
            return etag

        return self._counted("put", effect, sent=len(data))

    def put_large(self, key: str, body: Body, **facts: Any) -> str:
        """Do what ``put`` does: there is nothing that it would be too large for."""
        return self.put(key, body, **facts)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove the object if it is there."""
        check_key(key)
        self.fence.check(key)

        def effect() -> None:
            old = self._objects.get(key)
            if if_match is not None and old is not None and old.info.etag != if_match:
                raise PreconditionFailed(key)
            self._objects.pop(key, None)

        self._counted("delete", effect)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove these objects, one after the other."""
        for key in keys:
            self.delete(key)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        """Return the first ``limit`` entries of a prefix after a key."""
        check_listing(prefix, start_after, limit)

        def effect() -> ListPage:
            after = start_after.encode()
            keys = sorted((k for k in self._objects if k.startswith(prefix) and k.encode() > after), key=str.encode)
            infos = [self._objects[key].info for key in keys[:limit]]
            return ListPage(tuple(ListEntry(i.key, i.size, i.etag) for i in infos), len(keys) > limit)

        return self._counted("list", effect)

    def settles_in(self) -> float:
        """Return 0: what was written has taken effect."""
        return 0.0

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _find(self, key: str, at_most: int | None = None) -> StoredObject:
        try:
            found = self._objects[key]
        except KeyError:
            raise ObjectNotFound(key) from None
        if at_most is not None and found.info.size > at_most:
            raise too_large(self.name, key, at_most)
        return found

    def _counted(
        self,
        kind: str,
        effect: Callable[[], _T],
        *,
        sent: int = 0,
        received: Callable[[_T], int] | None = None,
    ) -> _T:
        started = time.perf_counter()
        count = 0
        try:
            with self._lock:
                result = effect()
            count = received(result) if received else 0
            return result
        finally:
            self.counters.add(kind, sent=sent, received=count, seconds=time.perf_counter() - started)
