"""The layout: which objects hold which blocks.

The cache above knows only this protocol. ``read``, ``write`` and ``survey_page`` talk to the store
and block; everything else answers at once from memory. ``None`` stands for a block of zeros.
"""

from __future__ import annotations

from typing import Protocol


class Layout(Protocol):
    """Blocks 0 … ``block_count - 1`` of ``block_size`` bytes each."""

    block_size: int

    @property
    def size(self) -> int:
        """Size of the volume in bytes, a multiple of the block size."""

    @property
    def block_count(self) -> int:
        """Number of blocks of the volume."""

    def read(self, block: int) -> bytes | None:
        """Fetch one block, exactly ``block_size`` bytes, or None where it is all zero.

        Raises StoreError, or CorruptObject where the object cannot be what was written.
        """

    def write(self, block: int, body: bytes | None) -> str:
        """Make the block's stored content ``body``. When it returns, it is in the bucket.

        Returns the ETag of the object, "" where there is none any more.
        """

    def known_absent(self, block: int) -> bool:
        """True only if it is certain that no object holds this block, so that it reads as zeros."""

    def next_possibly_present(self, block: int, stop: int) -> int:
        """Return the first block in [block, stop) that is not known to be absent, else stop."""
