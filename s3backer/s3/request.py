"""What is asked of S3, before it is signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from s3backer.s3.unsettled import ANYTHING
from s3backer.stores.base import Body
from s3backer.stores.bodies import size_of

#: Bytes of the largest answer that is no object: a listing of 1000 keys of 1024 bytes, all escaped, takes 4 MB.
LARGEST_DOCUMENT = 16 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``kind`` is what it counts as; ``resource`` a key, or empty for the bucket.

    ``conditional``: it has a condition, so that 412 is an answer. ``hedged``: it may be asked for twice at a time.
    """

    kind: str
    method: str
    resource: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    conditional: bool = False
    hedged: bool = False
    #: Bytes that its answer may have, None: as many as an object.
    at_most: int | None = LARGEST_DOCUMENT
    #: For a write: what the object has to be for it to take effect (s3/unsettled.py); None if it changes no object.
    accepts: str | None = ANYTHING
    #: Which keys it writes, if not the resource alone.
    keys: tuple[str, ...] = ()
    #: For a write: how many seconds ago a signature that was good for one second was made.
    signed_ago: int = 0

    @property
    def writes(self) -> bool:
        """Whether it changes the bucket."""
        return self.method in ("PUT", "DELETE", "POST")

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return size_of(self.body or ())
