"""The store: named objects in one bucket, and nothing about blocks.

Every implementation gives the same answers; ``tests/stores/test_behaviour.py`` runs one suite
against all of them. Calls block, may be made from any number of threads, and raise only errors of
``s3backer.errors``. Retrying is the store's own business: an error that comes out is final.

* ``put`` is atomic and durable: when it returns, the whole object is there and survives the loss of
  power of the client; a reader sees the old or the new object, never a mixture.
* ``delete`` of an absent object is a success.
* A missing bucket is ``BucketNotFound`` from every call, never an empty answer.
* ETags are opaque strings.
* Keys are ordered by their UTF-8 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from s3backer.stores.fence import Fence
from s3backer.telemetry.requests import RequestCounters

Buffer = bytes | bytearray | memoryview
#: What is put: one buffer, or several that follow one another. It is not changed before the call returns.
Body = Buffer | Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a HEAD tells. ``size`` is in bytes; metadata names are lower case, without prefix."""

    key: str
    size: int
    etag: str
    content_type: str = ""
    content_encoding: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a GET tells: the object's facts and its bytes.

    ``verified``: by what the bytes were seen to be those that were put: ``crc64nvme``, ``crc32c``, ``md5``, or empty
    where there is nothing that could show it.
    """

    info: ObjectInfo
    body: bytes
    verified: str = ""


@dataclass(frozen=True, slots=True)
class ObjectRange:
    """What a ranged GET tells: the bytes of the range that there are, and the size of the whole object in bytes."""

    body: bytes
    size: int


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One line of a listing. ``size`` is in bytes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing in key order. If ``truncated``, ask again after the last key."""

    entries: tuple[ListEntry, ...]
    truncated: bool


class ObjectStore(Protocol):
    """One bucket."""

    #: How messages name the bucket, such as ``s3://bucket`` or ``file:///dir``.
    name: str
    #: The bucket's bare name, which encryption keys are derived from.
    bucket: str
    #: Whether a write may take effect after the call that asked for it has ended, as over a network.
    delayed: bool
    #: Counts of requests and bytes by kind.
    counters: RequestCounters

    #: Whether anything may be written now.
    fence: Fence
    #: Whether what the fence has let through takes effect within ``arriving`` seconds or never.
    fenced: bool
    #: Seconds after the end of a process for which its writes may still take effect.
    lasting: float

    @property
    def conditions(self) -> bool | None:
        """Whether the conditions of a PUT are heeded; None: nobody has seen it yet."""

    @property
    def arriving(self) -> float:
        """Seconds for which a write may still take effect that the fence let through at the last moment."""

    @property
    def place(self) -> str:
        """What tells this bucket from all others: service and bucket, or the directory, whatever it was called."""

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        """Return the object; ``ObjectNotFound`` if absent, ``CorruptObject`` if it has more than ``at_most`` bytes.

        Of one that is larger no more than that is read.
        """

    def get_unless(self, key: str, etag: str, *, at_most: int | None = None) -> StoredObject | None:
        """Return the object as ``get`` does, or None if it has this ETag, without its body."""

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> ObjectRange:
        """Return ``length`` bytes (1 or more) from byte ``start`` of the object; ``ObjectNotFound`` if absent.

        Of a range that goes over the end there is what fits, of one at or after the end, or of an empty object,
        nothing: the size tells. ``PreconditionFailed`` if the object has another ETag than ``if_match``.
        The bytes are as many as they should be; no checksum that the store keeps covers a part of an object.
        """

    def head(self, key: str) -> ObjectInfo:
        """Return the object's facts; ``ObjectNotFound`` if absent."""

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
        """Store the object and return its ETag; ``PreconditionFailed`` if a condition does not hold."""

    def put_large(
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
        """Do what ``put`` does, in several requests where the object is too large for one.

        Its ETag is then not the MD5 of its body on any server: never for blocks of the classic layout. And between
        writers at the same moment the condition may be less exact than that of ``put`` (docs/requests.md).
        """

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove the object. Absent already is a success; PreconditionFailed if it has another ETag than this.

        Some servers ignore the condition.
        """

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove these objects. Absent already is a success; the first failure is raised, and says of which."""

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> ListPage:
        """Return at most ``limit`` (1 to 1000) entries whose keys begin with prefix and follow ``start_after``."""

    def settles_in(self) -> float:
        """Return for how many seconds writes whose answers were lost may still take effect; 0: none may."""

    def close(self) -> None:
        """Release connections. The store is not used afterwards."""
