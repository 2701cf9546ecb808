"""Copies of blocks that are nearer than the store: what the layout wants of whoever keeps them.

A copy is a block's object as it is stored, encoded, with the ETag that it had. Whether it is still current only the
layout can tell, from what it knows, or the store: ``find`` promises no more than that the copy is whole and of this
block. ``find`` may read a disk; everything else answers from memory. All methods may be called from any thread, and
none of them raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Copy:
    """A block's object: what its layout needs to decode the body, and the body."""

    etag: str
    body: bytes
    content_encoding: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Copies(Protocol):
    """Copies of one volume's blocks, each of which may vanish at any time."""

    def find(self, block: int) -> Copy | None:
        """Return a block's copy, None if there is none."""

    def used(self, block: int, *, verified: bool) -> None:
        """Take notice that a copy was read from, ``verified``: after the store said that it is current."""

    def keep(self, block: int, copy: Copy) -> None:
        """Take the block's object as it is now; no older copy is found any more, even if this one is not kept."""

    def drop(self, block: int) -> None:
        """Forget the block's copy: none that was kept before is found any more."""

    def damaged(self, block: int) -> None:
        """Forget a copy that cannot be what was kept."""


def is_strong(etag: str) -> bool:
    """Return whether equal ETags mean equal bytes; a weak one, and none, do not. Source: RFC 9110, section 8.8.1."""
    return bool(etag) and not etag.startswith("W/")
